# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A TFDS data set, built here from real rows, becomes a task and trains."""

import jax
import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from moe_peft.data import catalog
from moe_peft.data import provenance
from moe_peft.data import registration
from moe_peft.data import tfds_tasks
from moe_peft.data.sets import words as _words  # noqa: F401 (registers tasks)
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from tests import refusals
from tests.training import tiny

NUM_ROWS = {'train': 64, 'test': 16}


class Rows(tfds.core.GeneratorBasedBuilder):
  """The first rows of the task `past_tense`."""

  VERSION = tfds.core.Version('1.0.0')
  name = 'past_tense_rows'

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({
            'question': tfds.features.Text(),
            'answer': tfds.features.Text(),
            'length': np.int32,
        }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(split) for split in NUM_ROWS}

  def _generate_examples(self, split):
    for i, row in enumerate(rows(split)):
      yield i, {
          'question': row.inputs,
          'answer': row.targets,
          'length': len(row.inputs),
      }


def rows(split):
  return registration.RECORDS['past_tense'].rows_fn()[split][:NUM_ROWS[split]]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  Rows(data_dir=folder).download_and_prepare()
  return str(folder)


def register(data_dir, name, **options):
  return tfds_tasks.register_task(
      name,
      **{
          'tfds_name': 'past_tense_rows:1.0.0',
          'data_dir': data_dir,
          'splits': {'train': 'train', 'validation': 'test[:50%]'},
          'inputs_key': 'question',
          'targets_key': 'answer',
          'metrics': ['exact_match'],
          **options,
      },
  )


def test_rows_are_those_of_the_data_set(data_dir):
  name = register(data_dir, 'tfds_read')
  assert register(data_dir, 'tfds_read') == name  # Gin may ask twice.
  task = catalog.get_task_or_mixture(name)
  assert isinstance(task.source, seqio.TfdsDataSource)
  for split, expected in (('train', 64), ('validation', 8)):
    found = {
        (x['inputs_pretokenized'].decode(), x['targets_pretokenized'].decode())
        for x in task.get_dataset(None, split).as_numpy_iterator()
    }
    wanted = {(x.inputs, x.targets) for x in rows(
        'train' if split == 'train' else 'test'
    )}
    assert len(found) == expected and found <= wanted


def test_splits_are_those_that_tfds_reads(data_dir):
  splits = {'train': 'train[:25%]+test', 'validation': 'all'}
  task = catalog.get_task_or_mixture(
      register(data_dir, 'tfds_splits', splits=splits)
  )
  sizes = {s: len(list(task.get_dataset(None, s))) for s in splits}
  assert sizes == {'train': 32, 'validation': 80}


@pytest.mark.slow
def test_it_trains(tmp_path, data_dir):
  name = register(data_dir, 'tfds_train')
  experiment = tiny.experiment(tmp_path, MIXTURE_OR_TASK_NAME=name)
  setup = experiment_lib.prepare(experiment)
  before = jax.device_get(setup.trainable)  # The loop donates them.
  checkpointer = loop.open_checkpoints(setup)
  try:
    state = loop.train(setup, checkpointer, lambda step, params: None)
  finally:
    checkpointer.close()
  assert int(state.step) == experiment.train_steps
  after = jax.device_get(state.params)
  moved = [k for k in before if (before[k] != after[k]).any()]
  assert any(path.endswith('lora_b') for path in moved)


@pytest.mark.parametrize(
    ('options', 'names'),
    [
        ({'tfds_name': 'past_tens_rows:1.0.0'}, ['past_tens_rows:1.0.0']),
        ({'splits': {'train': 'training'}}, ['training', "['test', 'train']"]),
        ({'splits': {'train': 'train+tests'}}, ['train+tests']),
        ({'splits': {'train': 'train[:x%]'}}, ['train[:x%]', 'train']),
        ({'splits': {'train': 'test[16:]'}}, ['no rows', 'test[16:]']),
        ({'inputs_key': 'questions'}, ['questions', "'question'?"]),
        ({'targets_key': 'length'}, ["'length'", "'answer'", "'question'"]),
    ],
)
def test_what_cannot_work_is_said_at_once(data_dir, options, names):
  (argument,) = options
  with refusals.refused(f'tfds_tasks.register_task.{argument}', *names):
    register(data_dir, 'tfds_wrong', **options)


@pytest.mark.slow
def test_an_unknown_metric_is_said_at_once(data_dir):
  with refusals.refused('metrics', 'exact_match'):
    register(data_dir, 'tfds_wrong', metrics=['exact'])


def test_what_is_read_of_a_data_set_is_told(data_dir):
  of = lambda name, **options: provenance.identities(
      register(data_dir, name, **options)
  )
  then = of('tfds_whole')
  provenance.check_identities(2, then, of('tfds_whole_too'))
  with refusals.refused('rows of tfds_half', 'ALLOW_CHANGED_DATA'):
    provenance.check_identities(
        2, then, of('tfds_half', splits={'train': 'train[:50%]'})
    )
