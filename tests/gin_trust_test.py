# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A `config.gin` that somebody else wrote runs nothing but experiments."""

import importlib
import inspect
from pathlib import Path
import pkgutil
import re
import sys
import tarfile

import pytest

from moe_peft import evaluate
from moe_peft import gin_files
from moe_peft import gin_names
from moe_peft import gin_trust
from moe_peft import infer
from moe_peft import train
from moe_peft.cli import ablate
from moe_peft.cli import hf
from moe_peft.cli import prune
from moe_peft.cli import save_base
from moe_peft.data import local
from tests import refusals

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(
    file for kind in ('gin', 'configs') for file in (ROOT / kind).rglob('*.gin')
)
DYNAMIC = 'from __gin__ import dynamic_registration\n'


@pytest.mark.parametrize(
    'file', SHIPPED, ids=[str(x.relative_to(ROOT)) for x in SHIPPED]
)
def test_what_shipped_files_name_is_on_the_list(file):
  text = file.read_text(encoding='utf-8')
  if 'import __main__' in text:
    pytest.skip('T5X reads its runs itself.')
  gin_trust.check(re.sub(r'^include .*$', '', text, flags=re.M), str(file))


def test_runs_of_version_0_1_are_on_the_list():
  archive = ROOT / 'tests' / 'old_runs' / 'configs.tar.xz'
  with tarfile.open(archive) as opened:
    files = [x for x in opened.getmembers() if x.name.endswith('.gin')]
    assert files
    for file in files:
      text = opened.extractfile(file).read().decode()
      gin_trust.check(gin_names.upgrade(text), file.name)


@pytest.mark.parametrize(
    ('lines', 'name'),
    [
        ('import os', 'os'),
        ('from os import path as optax', 'os.path'),
        ('import moe_peft_other', 'moe_peft_other'),
        ("import jax\njax.numpy.load.file = 'x'", 'jax.numpy.load'),
        ('import jax\nX = @jax.os.system()', 'jax.os.system'),
        ("from flax import io\nio.rmtree.path = '/'", 'flax.io.rmtree'),
        ("from moe_peft import atomic\natomic.write.path = 'x'",
         'moe_peft.atomic.write'),
        ('from moe_peft.data import packages\nX = @packages.import_optional()',
         'moe_peft.data.packages.import_optional'),
        ('from moe_peft.data import local\nX = @local.gin_files.os.remove',
         'moe_peft.data.local.gin_files.os.remove'),
        ('from moe_peft.core import routing\nX = @routing._private()',
         'moe_peft.core.routing._private'),
        ('from moe_peft.core import routing\nX = @routing.Router.__init__',
         'moe_peft.core.routing.Router.__init__'),
        ('import moe_peft.core.routing\nX = [1, {2: (@s/moe_peft.errors.x,)}]',
         'moe_peft.errors.x'),
        ("os.system.command = 'x'", 'os.system'),
        ('X = @os.system()', 'os.system'),
        ('scope/os.system:\n  command = 1', 'os.system'),
        ('X = @macro()', 'macro'),
        ("include 'gin/methods/molora.gin'", 'gin/methods/molora.gin'),
        ("include '/folder/other.gin'", '/folder/other.gin'),
    ],
)
def test_anything_else_is_refused(lines, name):
  with refusals.refused('RUN/config.gin', name, '--trust_gin'):
    gin_trust.check(DYNAMIC + lines + '\n', 'RUN/config.gin')


def test_without_dynamic_registration_names_are_anybodys():
  lines = 'import optax\nX = @optax.adamw()\n'
  gin_trust.check(DYNAMIC + lines, 'config.gin')
  with refusals.refused('config.gin', 'optax.adamw'):
    gin_trust.check(lines, 'config.gin')


def test_a_name_is_that_of_the_import_before_it():
  lines = 'import optax as routing\nX = @routing.adamw()\n'
  gin_trust.check(DYNAMIC + lines, 'config.gin')
  lines += 'from moe_peft.hf import folders as routing\nY = @routing.x\n'
  with refusals.refused('config.gin', 'Line 5', 'moe_peft.hf.folders.x'):
    gin_trust.check(DYNAMIC + lines, 'config.gin')


@pytest.fixture
def strange_run(tmp_path, monkeypatch):
  """A run whose configuration imports a module that leaves a trace."""
  (tmp_path / 'strange_module.py').write_text(
      f'open({str(tmp_path / "TRACE")!r}, "w").close()\nX = 1\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'config.gin').write_text(f'{DYNAMIC}import strange_module\nX = 1\n')
  yield run
  sys.modules.pop('strange_module', None)


COMMANDS = {
    'infer': lambda run: infer.main([str(run), '/dev/null']),
    'evaluate': lambda run: evaluate.main([str(run)]),
    'train': lambda run: train.main([f'--gin_file={run / "config.gin"}']),
    'ablate': lambda run: ablate.main([str(run)]),
    'prune': lambda run: prune.main([str(run), '--keep=1', '--out=x']),
    'save_base': lambda run: save_base.main([str(run), 'x']),
    'export': lambda run: hf.main(['export', str(run), '--out=x']),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_refuse_before_anything_is_imported(command, strange_run):
  with refusals.refused(strange_run / 'config.gin', 'strange_module'):
    COMMANDS[command](strange_run)
  assert not (strange_run.parent / 'TRACE').exists()
  assert 'strange_module' not in sys.modules


def test_a_run_that_is_trusted_is_code(strange_run):
  file = str(strange_run / 'config.gin')
  gin_files.load_gin([file], trust=True)
  assert (strange_run.parent / 'TRACE').exists()


def test_files_of_users_are_trusted(strange_run):
  file = strange_run / 'mine.gin'
  (strange_run / 'config.gin').rename(file)
  gin_files.load_gin([str(file)])
  assert (strange_run.parent / 'TRACE').exists()


@pytest.mark.parametrize('text', ['X = (', 'X' * 5, '(' * 10_000, "X = '''"])
def test_what_is_no_gin_is_named(text, tmp_path):
  file = tmp_path / 'config.gin'
  file.write_text(DYNAMIC + text)
  with pytest.raises(ValueError) as error:
    gin_files.load_gin([str(file)])
  assert 'Traceback' not in str(error.value)


def listed_modules():
  """Modules of ours whose names a configuration may bind or call."""
  import moe_peft

  for info in pkgutil.walk_packages(moe_peft.__path__, 'moe_peft.'):
    if '.t5x.' not in info.name and gin_trust._NAMES.fullmatch(
        f'{info.name}.name'
    ):
      yield importlib.import_module(info.name)


@pytest.mark.slow
def test_modules_on_the_list_offer_nothing_of_others():
  """`from os import system` would put a stranger's function on the list."""
  modules = list(listed_modules())
  assert local in modules
  known = {'moe_peft', 'jax', 'flax', 'typing', 'collections', 'pathlib'}
  for module in modules:
    for name, value in vars(module).items():
      if inspect.isroutine(value) or inspect.isclass(value):
        root = (value.__module__ or '').partition('.')[0]
        assert name.startswith('_') or root in known, (module, name)


def test_a_run_of_t5x_is_told():
  text = (
      'from __gin__ import dynamic_registration\n'
      'import __main__ as train_script\n'
  )
  with refusals.refused('run/config.gin', 'T5X', 't5x.eval'):
    gin_trust.check(text, 'run/config.gin')
