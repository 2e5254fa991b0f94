# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The documents name commands, files, macros and places that exist.

A command is checked in its quick form: its own parser reads its flags, and its
gin files and macros are loaded. Nothing is trained but by the slow test.
"""

import argparse
from pathlib import Path
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
import setuptools

from benchmarks import __main__ as benchmarks
from moe_peft import __main__ as moe_peft
from moe_peft import gin_files
from moe_peft.cli import flags
from tests.checks import sweep
from tests.fuzz import __main__ as fuzz

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
    for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'))
}
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
QUICKSTART = 'python -m moe_peft.train --gin_file=configs/quickstart.gin'


def commands():
  """Every command of the ```sh blocks, and of the README's table, as words."""
  lines = re.findall(
      r'^\|.* `(python -m .*)` \|$', DOCUMENTS['README.md'], re.M
  )
  for text in DOCUMENTS.values():
    for language, block in BLOCK.findall(text):
      if language == 'sh':
        lines += block.replace('\\\n', ' ').splitlines()
  for line in lines:
    yield from _split(shlex.split(line, comments=True))


def _split(words):
  """Cuts words at the shell's operators."""
  command = []
  for word in words:
    if word in ('&&', '|', '>'):
      yield tuple(command)
      command = []
      if word == '>':
        return
    else:
      command.append(word)
  if command:
    yield tuple(command)


COMMANDS = sorted(set(commands()))
LEAVES = [
    (block.split()[1], block)
    for text in DOCUMENTS.values()
    for _, block in BLOCK.findall(text)
    if re.match(r'# \w+\.gin\n', block)
]
EXAMPLES = dict(LEAVES)


class Parsed(Exception):
  """A command has read its flags."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
  """Gives what a command's own parser makes of its words."""
  real = argparse.ArgumentParser.parse_args

  def stop(parser, args=None, namespace=None):
    raise Parsed(real(parser, args, namespace))

  monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
  monkeypatch.chdir(tmp_path)
  for name, text in EXAMPLES.items():
    (tmp_path / name).write_text(text)

  def parsed(main, words):
    with pytest.raises(Parsed) as info:
      main(flags.rewrite_gin_args(words))
    return info.value.args[0]

  return parsed


def known_macros():
  """Names that a gin file sets, takes, or asks for in its first lines."""
  files = (*ROOT.glob('gin/**/*.gin'), *ROOT.glob('configs/**/*.gin'))
  text = '\n'.join(path.read_text(encoding='utf-8') for path in files)
  return set(re.findall(r'\b[A-Z][A-Z0-9_]+\b', text))


def named(command, *program):
  return command[:len(program)] == program


def ids(command):
  return ' '.join(command)[:60]


OURS = [c for c in COMMANDS if named(c, 'python', '-m')
        and c[2].partition('.')[0] == 'moe_peft']


@pytest.mark.parametrize('command', OURS, ids=ids)
def test_flags_gin_files_and_macros_exist(command, parse):
  _, _, module, *words = command
  door = module.partition('.')[2]
  args = parse(moe_peft.dispatch, [door, *words] if door else words)
  if getattr(args, 'gin_file', None):
    if getattr(args, 't5x', False):  # Parsing them needs T5X.
      assert all((ROOT / file).is_file() for file in args.gin_file)
      names = {binding.split('=')[0] for binding in args.gin_bindings}
      assert names <= known_macros()
    else:
      # Commands that write no run, as `plan`, need no MODEL_DIR.
      gin_files.load_gin(
          args.gin_file, ['MODEL_DIR=run', *args.gin_bindings],
          args.gin_search_paths,
      )
  folder = str(getattr(args, 'folder', ''))
  if folder.startswith('configs'):
    assert list((ROOT / folder).glob('**/*.gin'))


def test_flags_of_benchmarks_exist(parse):
  found = [c for c in COMMANDS if named(c, 'python', '-m', 'benchmarks')]
  assert found
  for command in found:
    parse(benchmarks.main, list(command[3:]))


@pytest.mark.parametrize('module', [fuzz, sweep], ids=lambda x: x.__name__)
def test_flags_of_commands_among_the_tests_exist(module, parse):
  name = module.__name__.removesuffix('.__main__')
  (command,) = (c for c in COMMANDS if named(c, 'python', '-m', name))
  parse(module.main, list(command[3:]))


def test_commands_of_t5x_name_files_and_macros_that_exist():
  found = [c for c in COMMANDS if any(w.startswith('t5x.') for w in c)]
  written = {*EXAMPLES, *(c[-1] for c in COMMANDS if '--out' in c)}
  assert found
  for command in found:
    for word in command:
      flag, _, value = word.partition('=')
      if flag == '--gin_file':
        assert value in written or (ROOT / value).is_file(), value
      elif flag.startswith('--gin.'):
        assert flag.removeprefix('--gin.') in known_macros(), flag


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
def test_launch_scripts_take_what_is_given():
  found = [c for c in COMMANDS if c[0].startswith('launch/')]
  assert found
  for command in found:
    at = command.index('--')
    subprocess.run(
        [*command[:at], '--dry-run', *command[at:]],
        cwd=ROOT, check=True, capture_output=True,
    )


def test_extras_markers_and_programs_exist(monkeypatch):
  seen = {}
  monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
  runpy.run_path(str(ROOT / 'setup.py'))
  markers = {'slow', 'long', 't5x', 'hf', 'or', 'not', 'and'}
  others = {'echo', 'llama-server', 'mkdocs', 'ruff', 'unzip', 'vllm'}
  others |= {'for', 'set', 'done'}  # Loops of the shell.
  packages = ('moe_peft', 'benchmarks', 'tests', 't5x', 'sglang')
  for command in COMMANDS:
    if named(command, 'pip', 'install') and '-r' in command:
      assert (ROOT / command[-1]).is_file(), command
    elif named(command, 'pip', 'install'):
      extras = re.fullmatch(r'\.\[([\w,]+)\]', command[-1])[1]
      assert set(extras.split(',')) <= seen['extras_require'].keys(), command
    elif named(command, 'python', '-m', 'pytest'):
      words = dict(zip(command[3:], command[4:], strict=False))
      assert set(words.get('-m', '').split()) <= markers, command
    elif not named(command, 'pip', 'download'):
      assert (
          command[0] in others
          or command[0].startswith('launch/')
          or command[2].partition('.')[0] in packages
      ), command


def test_gin_examples_have_names_of_their_own():
  assert len(EXAMPLES) == len(LEAVES)


@pytest.mark.parametrize('name', EXAMPLES)
def test_gin_examples_are_read(name, parse, tmp_path):
  text = EXAMPLES[name]
  names = re.findall(r'^([A-Z][A-Z0-9_]*) =|%([A-Z]\w*)', text, re.M)
  assert {x or y for x, y in names} <= known_macros()
  included = re.findall(r"^include '(.*)'", text, re.M)
  if any('t5x' in file for file in included):  # Parsing them needs T5X.
    ours = [file for file in included if not file.startswith('t5x/')]
    assert ours and all((ROOT / file).is_file() for file in ours)
  else:
    gin_files.load_gin(['configs/quickstart.gin', str(tmp_path / name)])


@pytest.mark.parametrize('document', DOCUMENTS)
def test_macros_in_the_text_exist(document):
  text = BLOCK.sub('', DOCUMENTS[document])
  names = set(re.findall(r'`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?: = [^`]*)?`', text))
  names |= set(re.findall(r'--gin\.([A-Z]\w+)', DOCUMENTS[document]))
  assert names - {'NAME'} <= known_macros()


def test_files_in_how_it_works_exist():
  names = {
      path.name
      for room in ('moe_peft', 'benchmarks', 'docs', 'gin', 'tests')
      for path in (ROOT / room).rglob('*.*')
  }
  text = DOCUMENTS['implementation.md']
  named_files = re.findall(r'`(?:[\w/]+/)?(\w+\.(?:py|gin))`', text)
  assert len(named_files) > 50 and set(named_files) <= names


def anchors(text):
  headings = re.findall(r'^#+ (.*)$', BLOCK.sub('', text), re.M)
  return {
      re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')
      for heading in headings
  }


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_somewhere(document):
  text = BLOCK.sub('', DOCUMENTS[document])
  for target, anchor in re.findall(r'\]\(([^)\s#:]*)#?([^):\s]*)\)', text):
    path = (ROOT / document).parent / target if target else ROOT / document
    assert path.is_file(), target
    if anchor:
      assert anchor in anchors(path.read_text(encoding='utf-8')), anchor


def test_every_method_and_every_command_has_its_line(capsys):
  for path in ROOT.glob('gin/methods/*.gin'):
    assert f'`{path.stem}`' in DOCUMENTS['docs/methods.md'], path
  moe_peft.dispatch(['--help'])
  listed = re.findall(r'^  (\w+) +\w', capsys.readouterr().out, re.M)
  assert 'train' in listed
  for command in listed:
    assert f'\n| `{command} ' in DOCUMENTS['docs/quickstart.md'], command


def test_the_readme_is_short_and_continuous_integration_follows_it():
  readme = DOCUMENTS['README.md']
  assert len(readme.encode()) <= 8192
  script = (ROOT / '.ci' / 'run').read_text().replace(' --quiet', '')
  for command in ("pip install -e '.[quickstart]'", QUICKSTART,
                  'python -m pytest -m'):
    assert command in readme and command in script
  # The script names a torch without CUDA, and builds the site too.
  assert "pip install -e '.[test,hf]'" in readme
  assert "-e '.[test,hf,docs]'" in script


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
  pytest.importorskip('mkdocs')
  subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
       str(tmp_path)],
      cwd=ROOT, check=True,
  )
  for page in tmp_path.rglob('*.html'):
    text = page.read_text(encoding='utf-8')
    assert not re.search(r'(?:src=|<link[^>]*href=)"https?://', text), page
  method = (tmp_path / 'methods' / 'molora.html').read_text(encoding='utf-8')
  assert 'NUM_EXPERTS' in method and 'lora_b' in method
