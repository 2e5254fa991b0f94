# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of T5X in the embedded engine; tests/t5x/leaf_test.py has a real one."""

import json

import gin
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moe_peft import infer
from moe_peft.cli import ablate
from moe_peft.core import trainable
from moe_peft.runs import t5x_run
from moe_peft.training import base_identity
from moe_peft.training import bases
from moe_peft.training import checksums
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import method_settings
from moe_peft.training import restored
from moe_peft.training import run
from moe_peft.training import t5x_checkpoints
from tests import refusals
from tests.training import tiny


@pytest.fixture(name='base')
def _base(tmp_path):
  setup = experiment_lib.prepare(tiny.experiment(tmp_path / 'unused'))
  return bases.write_t5x(jax.device_get(setup.frozen), tmp_path / 'base')


def _write_run(base, folder, whole, step=3, **bindings):
  """Writes a run as T5X does; returns its parameters."""
  bindings = {'INITIAL_CHECKPOINT_PATH': str(base), **bindings}
  setup = experiment_lib.prepare(tiny.experiment(folder, **bindings))
  trained = {k: np.asarray(x) + step for k, x in setup.trainable.items()}
  frozen = jax.device_get(setup.frozen)
  checkpoint = folder / f'checkpoint_{step}'
  base_alone = {k: x for k, x in frozen.items() if not trainable.is_adapter(k)}
  saved = {k: x for k, x in frozen.items() if whole or k not in base_alone}
  target = {**trained, **saved}
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
        checkpoint.absolute() / 'state',
        {'target': trainable.unflatten(target), 'state': {'step': step}},
    )
  if not whole:
    identity = base_identity.of(str(base), base_alone, setup.mesh)
    for name, value in (
        ('base', identity | {'version': base_identity.VERSION}),
        ('method', method_settings.settings()),
    ):
      (checkpoint / name).mkdir()
      (checkpoint / name / 'metadata').write_text(json.dumps(value))
  return {**trained, **frozen}


def _read(base, folder, **bindings):
  bindings = {'INITIAL_CHECKPOINT_PATH': str(base), **bindings}
  return restored.restore(tiny.experiment(folder, **bindings))[1]


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_adapters_come_from_the_run_and_the_rest_from_the_base(
    base, tmp_path, whole, dtype
):
  folder = tmp_path / 'run'
  _write_run(base, folder, whole, step=2)
  expected = _write_run(base, folder, whole, BASE_DTYPE=dtype)
  # Exports read the base as floats of 32 bits, whatever it was trained in.
  found = _read(base, folder)
  assert found.keys() == expected.keys()
  for name, array in found.items():
    if trainable.is_adapter(name):
      np.testing.assert_array_equal(array, expected[name])
    else:
      assert array.dtype == np.float32
  assert any(expected[name].dtype == dtype for name in expected)


@pytest.mark.parametrize('whole', [False, True])
def test_another_base_method_or_size_is_refused(base, tmp_path, whole):
  folder = tmp_path / 'run'
  _write_run(base, folder, whole)
  with refusals.refused('--gin_file', folder / 'checkpoint_3', 'lora_a'):
    _read(base, folder, RANK=3)
  with refusals.refused('--gin_file', folder / 'checkpoint_3', 'missing'):
    _read(base, folder, SITES='.*/(query|key|wo)')
  with refusals.refused('BASE_DTYPE', 'float32'):
    _read(base, folder, BASE_DTYPE='int8')
  arrays = dict(bases.read_arrays(base))
  name = 'encoder/encoder_norm/scale'
  other = bases.write_t5x(arrays | {name: 2 * arrays[name]}, tmp_path / 'other')
  with refusals.refused(
      'INITIAL_CHECKPOINT_PATH', other, name if whole else base
  ):
    _read(other, folder)


@pytest.mark.parametrize('whole', [False, True])
def test_a_setting_without_a_shape_is_told(base, tmp_path, whole):
  folder = tmp_path / 'run'
  _write_run(base, folder, whole)
  if whole:  # T5X writes it.
    (folder / 'config.gin').write_text(gin.config_str())
  with refusals.refused('--gin_file', 'ALPHA', '99', 'ALLOW_CHANGED_METHOD'):
    _read(base, folder, ALPHA=99.0)
  assert _read(base, folder, ALPHA=99.0, ALLOW_CHANGED_METHOD=True)


def test_nothing_trains_in_the_folder_of_a_base_of_t5x(base):
  with refusals.refused('MODEL_DIR', base.parent, 'checkpoints of T5X'):
    loop.open_checkpoints(
        experiment_lib.prepare(tiny.experiment(base.parent)), alone=True
    )


@pytest.mark.parametrize('whole', [False, True])
def test_frozen_adapters_come_from_the_run(base, tmp_path, whole):
  routers_freeze = {'TRAINABLE_REGEX': '.*/adapter/lora_.*'}
  expected = _write_run(base, tmp_path / 'run', whole, **routers_freeze)
  # T5X draws routers with another key.
  found = _read(base, tmp_path / 'run', **routers_freeze, SEED=1)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)


def test_of_a_base_the_first_version_noted_another_fingerprint(
    base, tmp_path, capsys
):
  expected = _write_run(base, tmp_path / 'run', whole=False)
  file = tmp_path / 'run/checkpoint_3/base/metadata'
  note = json.loads(file.read_text())
  del note['version']
  file.write_text(json.dumps(note | {'sha256': 'other'}))
  assert _read(base, tmp_path / 'run').keys() == expected.keys()
  assert base_identity.OLDER in capsys.readouterr().err
  file.write_text(json.dumps(note | {'parameters': 7}))
  with refusals.refused('INITIAL_CHECKPOINT_PATH', str(base)):
    _read(base, tmp_path / 'run')


def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    base, tmp_path, capsys
):
  folder = tmp_path / 'run'
  expected = _write_run(base, folder, whole=False, step=2)
  _write_run(base, folder, whole=False)
  for step in (2, 3):
    checkpoint = folder / f'checkpoint_{step}'
    (checkpoint / checksums.ITEM).mkdir()
    checksums.Handler().finalize(checkpoint / checksums.ITEM)
  note = folder / 'checkpoint_3' / 'base' / 'metadata'
  note.write_text('{}')
  found = _read(base, folder)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
  assert f'{note} is damaged' in capsys.readouterr().err
  (folder / 'checkpoint_2' / 'base' / 'metadata').write_text('{}')
  with refusals.refused(note):
    _read(base, folder)


def test_runs_are_told_from_ours(base, tmp_path):
  folder = tmp_path / 'run'
  assert t5x_run.checkpoints(folder) == {}
  _write_run(base, folder, whole=True)
  (folder / 'checkpoint_4.orbax-checkpoint-tmp').mkdir()
  assert t5x_run.checkpoints(folder) == {3: folder / 'checkpoint_3'}
  setup = experiment_lib.lay_out(tiny.experiment(folder))
  assert t5x_checkpoints.T5XCheckpoints(setup).require_step() == 3
  (folder / 'checkpoints').mkdir()  # The embedded engine wrote this one.
  assert t5x_run.checkpoints(folder) == {}


def test_nothing_else_is_done_with_a_run_of_t5x(base, tmp_path):
  folder = tmp_path / 'run'
  _write_run(base, folder, whole=False)
  tiny.load(folder, INITIAL_CHECKPOINT_PATH=str(base))
  with refusals.refused('MODEL_DIR', folder):
    run.run_experiment()
  config = folder / 'config.gin'
  config.write_text('import __main__ as train_script\n')
  lines = tmp_path / 'lines.txt'
  lines.write_text('past tense: walk\n')
  with refusals.refused(config, '--gin_file'):
    infer.main([str(folder), str(lines)])
  with refusals.refused(config, 'hf export'):
    ablate.main([str(folder), '--gin_file=configs/quickstart.gin'])
