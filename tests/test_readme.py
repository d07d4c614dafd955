"""README against the code: every flag with its default, every file, every command's script."""

import os
import re

from absl import flags

import main  # noqa: F401  defines the flags
from utils.system import runtime

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = {'true': True, 'false': False, 'the cores': runtime.usable_cores(), 'newest': None, 'whole list': None,
         'only without pretrain_file': None, "VOC's colours": '', '': '',
         'whole image': None, '1.0': [1.0], "the weights'": None, "the mode's": None, 'that of TF_CONFIG': None,
         '10,20': [10.0, 20.0], 'the list': None, 'none': None}


def readme():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        return file.read()


def table(title):
    """Rows of cells of the table below a heading."""
    section = readme().split('\n## %s\n' % title)[1].split('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines()
            if line.startswith('|')]
    return rows[2:]


def test_every_flag_and_its_default_is_listed():
    defined = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    listed = {}
    for names, default, _ in table('Flags'):
        default = re.sub(r' \(main_msc.*\)', '', default)
        for name in names.split(', '):
            listed[name] = WORDS[default] if default in WORDS else type(defined[name])(default)
    assert listed == defined


def test_every_source_file_is_listed():
    cells = ' '.join(row[0] for row in table('What each file is'))
    folders = [ROOT] + [folder for folder, _, _ in os.walk(os.path.join(ROOT, 'utils'))]
    found = [name for folder in folders for name in os.listdir(folder)
             if name.endswith('.py') and name != '__init__.py']
    assert len(found) > 40 and [name for name in found if name not in cells] == []


def test_commands_name_files_that_exist():
    scripts = set(re.findall(r'python (\S+\.py)', readme())) | set(re.findall(r'--flagfile=(\S+\.flags)', readme()))
    assert len(scripts) >= 6
    assert [name for name in scripts if not os.path.exists(os.path.join(ROOT, name))] == []
