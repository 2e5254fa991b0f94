# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments written as gin files of T5X: one meaning on both engines."""

import contextlib
import dataclasses
import importlib
import sys

import gin
import jax
import numpy as np
import pytest
import tensorflow as tf

from moe_peft.cli import flags
from moe_peft.cli import t5x_config
from moe_peft.core import trainable
from moe_peft.runs import config_file
from moe_peft.runs import metrics_files
from moe_peft.t5x import leaf
from moe_peft.t5x import settings
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import objectives
from moe_peft.training import restored
from moe_peft.training import run
from tests import refusals
from tests.t5x import training
from tests.training import tiny

with contextlib.suppress(ImportError):
  importlib.import_module('t5x')  # It registers with gin: before it is locked.

_FILES = [
    '--gin_file=gin/models/tiny_t5.gin', '--gin_file=gin/methods/molora.gin',
    '--gin_file=gin/runs/finetune.gin',
]
# What is written in the file's place of T5X's own, and nothing of it.
_ADAPTERS_OF_THE_BASE = """
utils.RestoreCheckpointConfig.assignment_map = (('state/.*', None),)
train_script.train.infer_eval_dataset_cfg = None
train_script.train.train_eval_dataset_cfg = None
"""


def _flags(folder, **bindings):
  values = {**tiny.SIZES, 'MODEL_DIR': str(folder), **bindings}
  return [f'--gin.{name}={value!r}' for name, value in values.items()]


def _write(folder, *more, **bindings):
  file = folder / 'leaf.gin'
  args = flags.rewrite_gin_args(
      [*_FILES, *more, *_flags(folder, **bindings), f'--out={file}']
  )
  t5x_config.main(args)
  return file


@pytest.fixture(name='base')
def _base(tmp_path):
  """A base with adapters, so that both engines begin with the same ones."""
  setup = experiment_lib.prepare(tiny.experiment(tmp_path))
  params = jax.device_get({**setup.trainable, **setup.frozen})
  return bases.write_t5x(params, tmp_path / 'base')


@pytest.mark.slow
def test_the_file_says_what_the_experiment_says(base, tmp_path):
  file = _write(
      tmp_path, INITIAL_CHECKPOINT_PATH=str(base), PACKING=True,
      NUM_EXPERT_PARTITIONS=2, AUX_LOSS_FACTOR=0.5, EVAL_EXAMPLES=8,
      TRAIN_STEPS=30, CHECKPOINT_PERIOD=20, EVAL_PERIOD=0,
  )
  text = file.read_text()
  bound = config_file.bindings(text, file)
  assert bound['train/utils.DatasetConfig.pack'] == 'True'
  macros = config_file.macros(bound)
  assert (macros['NUM_EXPERTS'], macros['RANK']) == ('4', '2')
  assert macros['NUM_EXPERT_PARTITIONS'] == '2'
  # T5X asks for multiples; both are done at the end of a run too.
  assert (macros['EVAL_PERIOD'], macros['CHECKPOINT_PERIOD']) == ('40', '20')
  assert "'auxiliary_loss': 0.5" in macros['LOSS_FACTORS']
  assert macros['INITIAL_CHECKPOINT_PATH'] == repr(str(base))
  assert 't5x_expert_partitions.gin' in text
  assert 'experiment' not in text.partition('from __gin__')[2]


@pytest.mark.slow
def test_a_method_that_another_took_the_place_of_is_left_out(base, tmp_path):
  file = _write(
      tmp_path, '--gin_file=gin/methods/sira.gin',
      INITIAL_CHECKPOINT_PATH=str(base),
  )
  bound = config_file.bindings(file.read_text(), file)
  assert 'sira.SiRA.rank' in bound  # T5X refuses two.
  assert not [name for name in bound if name.startswith('molora.')]


@pytest.mark.slow
@pytest.mark.t5x
@pytest.mark.parametrize('method', ['riemannian', 'loraplus'])
def test_what_a_method_does_with_pairs_is_read(base, tmp_path, method):
  if 't5x' not in sys.modules:
    pytest.skip('t5x is not on the path')
  file = _write(
      tmp_path, f'--gin_file=gin/methods/{method}.gin',
      INITIAL_CHECKPOINT_PATH=str(base),
  )
  gin.clear_config()
  with training.parsed('train', [file], MODEL_DIR=str(tmp_path / 't5x')):
    bound = settings.bound('moe_peft.t5x.optimizer.AdapterOptimizer')
  assert bound.keys() & {'gradients', 'updates'}


@pytest.mark.slow
def test_a_base_that_t5x_cannot_restore_is_written_beside(base, tmp_path):
  params = bases.read_arrays(base)
  bases.save_base(params, tmp_path / 'flat')
  file = _write(tmp_path, INITIAL_CHECKPOINT_PATH=str(tmp_path / 'flat'))
  written = tmp_path / 'leaf.base/checkpoint_0'
  assert f'INITIAL_CHECKPOINT_PATH = {str(written)!r}' in file.read_text()
  again = bases.read_arrays(written)
  assert again.keys() == params.keys()
  assert {x.dtype.name for x in again.values()} == {'bfloat16'}
  with refusals.refused('--out', 'leaf.gin'):
    _write(tmp_path, INITIAL_CHECKPOINT_PATH=str(tmp_path / 'flat'))
  file.unlink()  # The base of an earlier file is not written over.
  with refusals.refused(str(tmp_path / 'leaf.base')):
    _write(tmp_path, INITIAL_CHECKPOINT_PATH=str(tmp_path / 'flat'))


@pytest.mark.parametrize(
    ('macro', 'value', 'method'),
    [
        ('NUM_MICROBATCHES', 2, 'molora'),
        ('TRAIN_STEPS', 0, 'molora'),
        ('REMAT_POLICY', 'auto', 'molora'),
        ('STARTS_FROM_BASE', True, 'pissa'),  # The leaf has no such macro.
        ('GROWTH_STEPS', 4, 'smoe_dropout'),
    ],
)
def test_what_means_something_else_there_is_refused(
    macro, value, method, base, tmp_path
):
  experiment = tiny.experiment(tmp_path, method, **{macro: value})
  with refusals.refused(macro, 'T5X'):
    leaf.make(experiment, gin.config_str(), str(base), tmp_path / 'leaf.gin')
  with refusals.refused(macro, 'T5X'):
    leaf.base_of(experiment, tmp_path / 'leaf.base')
  assert not (tmp_path / 'leaf.base').exists()


def test_t5x_has_no_objective_of_preferences(tmp_path):
  experiment = dataclasses.replace(
      tiny.experiment(tmp_path), objective=objectives.DirectPreference()
  )
  with refusals.refused('experiment.Experiment.objective', 'T5X'):
    leaf.make(experiment, gin.config_str(), 'base', tmp_path / 'leaf.gin')


@pytest.mark.t5x
@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_ten_steps_have_the_same_losses(base, tmp_path, packing):
  if 't5x' not in sys.modules:
    pytest.skip('t5x is not on the path')
  bindings = {
      'INITIAL_CHECKPOINT_PATH': str(base), 'TRAIN_STEPS': 10,
      'PACKING': packing, 'AUX_LOSS_FACTOR': 0.1, 'DROPOUT_RATE': 0.0,
  }
  file = _write(tmp_path, **bindings)
  tiny.load(tmp_path / 'embedded', **bindings)
  run.run_experiment()
  written = tmp_path / 'embedded' / metrics_files.TRAIN
  rows, _ = metrics_files.read_lines(written)
  expected = [row['loss'] for row in rows]
  file.write_text(file.read_text() + _ADAPTERS_OF_THE_BASE)
  folder = tmp_path / 't5x'
  gin.clear_config()  # What T5X registers cannot be when it is locked.
  with (
      training.on_one_device(),
      training.parsed('train', [file], MODEL_DIR=str(folder)) as main,
  ):
    _, state = main()
  found = _losses(folder / 'train')
  assert len(expected) == len(found) == 10
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  saved = bases.read_orbax(folder / 'checkpoint_10' / 'state')
  adapters = trainable.flatten(saved['target'])
  assert adapters.keys() == {
      k for k in training.flat_params(state) if trainable.is_adapter(k)
  }
  # The embedded engine reads them, and nothing else of them than T5X wrote.
  _, read = restored.restore(tiny.experiment(folder, **bindings))
  for name, array in adapters.items():
    np.testing.assert_array_equal(read[name], array)


def _losses(folder):
  """The losses that T5X's trainer logs, a step each."""
  found = {}
  for file in folder.glob('events*'):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        if value.tag == 'cross_ent_loss':  # Without z-loss, as ours.
          found[event.step] = float(tf.make_ndarray(value.tensor))
  return [loss for _, loss in sorted(found.items())]
