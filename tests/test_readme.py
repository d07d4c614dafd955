"""README against the code: every flag with its default, every file, every command's script."""

import os
import re
import shlex
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver

import main
from utils.system import command_line
from utils.system.command_line import RECORDS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def readme():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        return file.read()


def table(title):
    """Rows of cells of the table below a heading."""
    section = readme().split('\n## %s\n' % title)[1].split('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines()
            if line.startswith('|')]
    return rows[2:]


def test_every_flag_is_a_record_and_stands_with_its_default_on_the_page_of_flags():
    assert '](docs/flags.md)' in readme()
    with open(os.path.join(ROOT, 'docs', 'flags.md'), encoding='utf-8') as file:
        page = file.read()
    made = subprocess.run([sys.executable, os.path.join('tools', 'make_flags_page.py')], cwd=ROOT,
                          stdout=subprocess.PIPE, check=True).stdout.decode('utf-8')
    assert page == made, 'make it anew: python tools/make_flags_page.py > docs/flags.md'
    defined = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    assert defined == {name: record.default for name, record in RECORDS.items()}
    rows = [re.split(r' (?<!\\)\| ', line[2:-2]) for line in page.splitlines() if line.startswith('| ')]
    listed = {cells[0]: re.sub(r' \(main_msc.*\)', '', cells[1]) for cells in rows if cells[0] != 'flag'}
    assert sorted(listed) == sorted(defined)
    for name, told in listed.items():
        if told:
            assert flags.FLAGS[name].parser.parse(told) == defined[name]
        else:  # the text says what it is
            assert defined[name] == '' or 'by default' in RECORDS[name].help


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


def test_no_command_gives_a_flag_that_its_option_does_not_read(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r'(?m)^ *(?:pip .* && )?python main(?:_msc)?\.py (.*)$', readme().replace('\\\n', ' '))
    commands += re.findall(r'`python main(?:_msc)?\.py ([^`]*)`', readme())
    assert len(commands) > 20
    for command in commands:
        args = shlex.split(re.sub('--flagfile camvid.flags', '', command.replace('$type', 'smooth_GI')), comments=True)
        with flagsaver.flagsaver():
            assert command_line.run(lambda: None, ['main.py'] + args, main.sample_args) == 0, (
                command, capsys.readouterr().err)
