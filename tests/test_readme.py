"""Checks README and the pages of docs/ against the code: flags with their defaults, files, commands, links."""

import glob
import os
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

import main
from utils.system import command_line
from utils.system.command_line import RECORDS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# changing_it.md contains flags that its reader adds; test_changing_it.py runs its commands.
PAGES = ['README.md', 'CONTRIBUTING.md'] + sorted(
    os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, 'docs', '*.md'))
    if os.path.basename(path) != 'changing_it.md')
MOST_LINES = 200  # of README


def read(page):
    with open(os.path.join(ROOT, page), encoding='utf-8') as file:
        return file.read()


def table(page, title):
    """Returns the rows of the table below a heading, each a list of cells."""
    section = read(page).split('\n## %s\n' % title)[1].split('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines()
            if line.startswith('|')]
    return rows[2:]


def commands(page):
    """Returns the arguments of each call of main.py or main_msc.py on a page, in blocks of code or in the text."""
    text = read(page).replace('\\\n', ' ')
    return (re.findall(r'(?m)^ *(?:pip .* && )?python main(?:_msc)?\.py (.*)$', text)
            + re.findall(r'`python main(?:_msc)?\.py ([^`]*)`', text))


def prose(page):
    """Returns the text of a page without its blocks of code."""
    return re.sub(r'(?ms)^ *```.*?^ *```', '', read(page))


def anchors(page):
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r'(?m)^#+ (.*)$', prose(page))
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]


def test_readme_is_short():
    assert len(read('README.md').splitlines()) <= MOST_LINES


def test_every_flag_has_a_record_and_is_on_the_page_of_flags_with_its_default():
    assert '](docs/flags.md)' in read('README.md')
    page = read(os.path.join('docs', 'flags.md'))
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
    cells = ' '.join(row[0] for row in table(os.path.join('docs', 'architecture.md'), 'What each file is'))
    names = re.split(r'[\s,*/]+', cells)
    folders = [ROOT] + [folder for part in ('utils', 'benchmarks', 'tools')
                        for folder, _, _ in os.walk(os.path.join(ROOT, part))]
    found = [name for folder in folders for name in os.listdir(folder)
             if name.endswith('.py') and name != '__init__.py']
    assert len(found) > 40 and [name for name in found if name not in names] == []
    sources = [name for name in names if name.endswith('.py')]
    assert [name for name in sources if name not in found + ['harness.py']] == []


def test_functions_that_architecture_names_exist():
    """Each `owner.name` is a function or class of the module, or a method of the class, owner."""
    sources = {path: read(path) for path in glob.glob(os.path.join(ROOT, '**', '*.py'), recursive=True)
               if os.sep + 'tests' + os.sep not in path}
    named = re.findall(r'(?:`|\["|<br>|, )([A-Za-z]\w+)\.(\w+)', read(os.path.join('docs', 'architecture.md')))
    named = [pair for pair in named if pair[1] not in ('py', 'md', 'html', 'csv')]
    assert len(named) > 30
    for owner, name in named:
        assert any(re.search(r'(?m)^ *(?:def|class) %s\b' % name, text) for path, text in sources.items()
                   if os.path.basename(path) == owner + '.py' or re.search(r'(?m)^class %s\b' % owner, text)), (
                       owner, name)


def test_commands_name_files_that_exist():
    text = '\n'.join(map(read, PAGES))
    scripts = set(re.findall(r'python (\S+\.py)', text)) | set(re.findall(r'--flagfile=(dataset/\S+\.flags)', text))
    scripts |= set(re.findall(r'pip install -r (\S+\.txt)', text))
    assert len(scripts) >= 15
    assert [name for name in scripts if not os.path.exists(os.path.join(ROOT, name))] == []


def test_commands_of_other_programs_give_flags_that_these_have():
    text = '\n'.join(map(read, PAGES)).replace('\\\n', ' ')
    found = re.findall(r'python (?!main)((?:tools|benchmarks)?/?\w+\.py|-m (?:utils|tests)[.\w]+) ([^`#\n]*)', text)
    assert len(found) > 10
    for program, args in found:
        path = program.replace('-m ', '').replace('.py', '').replace('.', os.sep)
        path = path + '.py' if os.path.exists(os.path.join(ROOT, path + '.py')) else os.path.join(path, '__main__.py')
        for name in re.findall(r'--(\w+)', args):
            assert re.search("'(--)?%s'" % name, read(path)), (program, name)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'https?:', link):
            continue
        path, _, anchor = link.partition('#')
        target = os.path.relpath(os.path.join(ROOT, os.path.dirname(page), path), ROOT) if path else page
        assert os.path.exists(os.path.join(ROOT, target)), link
        assert not anchor or anchor in anchors(target), link


def test_no_command_gives_a_flag_that_its_option_does_not_read(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    own = re.search(r'(?s)```\n(--data_dir=camvid\n.*?)```', read(os.path.join('docs', 'own_data.md'))).group(1)
    assert own in re.sub(r'(?m)^ +', '', read('README.md'))
    (tmp_path / 'camvid.flags').write_text(own, 'utf-8')
    found = [command for page in PAGES for command in commands(page)]
    assert len(commands('README.md')) > 12 and len(found) > 30
    for command in found:
        args = shlex.split(command.replace('$type', 'smooth_GI'), comments=True)
        args = [arg.replace('=camvid.flags', '=%s' % (tmp_path / 'camvid.flags')) for arg in args]
        with flagsaver.flagsaver():
            assert command_line.run(lambda: None, ['main.py'] + args, main.sample_args) == 0, (
                command, capsys.readouterr().err)
