# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the ids that examples are given."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft.data import catalog
from moe_peft.data import example_ids
from moe_peft.data import local
from moe_peft.data import registration
from tests.refusals import refused


@pytest.fixture(autouse=True)
def _forget_tasks():
  """SeqIO keeps tasks and folders of caches between tests."""
  folders = list(seqio.get_global_cache_dirs())
  yield
  seqio.set_global_cache_dirs(folders)
  for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
    for name in [n for n in registry.names() if n.startswith('my_')]:
      registry.remove(name)
      registration.RECORDS.pop(name, None)


def register(tmp_path, name, ids=(), **options):
  rows = [
      {'inputs': f'{name}{i}', 'targets': 'a', 'lang': x}
      for i, x in enumerate(ids or [None] * 9)
  ]
  file = tmp_path / f'{name}.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  return local.register_task(name, train=str(file), **options)


def found(name):
  """Ids of the rows, by their inputs."""
  dataset = seqio.get_mixture_or_task(name).get_dataset(
      {'inputs': 16, 'targets': 8}, 'train', shuffle=False, num_epochs=1
  )
  vocabulary = seqio.ByteVocabulary()
  return {
      vocabulary.decode(x['inputs'].tolist()): x['example_ids'].tolist()
      for x in dataset.as_numpy_iterator()
  }


def test_the_name_of_a_task_is_its_id(tmp_path):
  tasks = [register(tmp_path, f'my_{x}') for x in 'ab']
  mixture = local.register_mixture('my_both', tasks)
  name = example_ids.with_ids(mixture, ('my_b', 'my_other', 'my_a'))
  assert catalog.task_names(name) == ['my_a', 'my_b'], 'Names of results.'
  ids = {(text[:4], *ids) for text, ids in found(name).items()}
  assert ids == {('my_a', 3), ('my_b', 1)}
  # T5X looks tasks up by their names.
  by_name = example_ids.with_ids('my_a', ('my_a',), by_name=True)
  (task,) = catalog.task_names(by_name)
  assert list(found(task).values()) == [[1]] * 9
  assert example_ids.with_ids('my_a') == 'my_a'
  with refused('EXAMPLE_IDS', 'my_a', 'my_b'):
    example_ids.with_ids(mixture, ('my_b',))


@pytest.mark.parametrize(
    ('values', 'ids'), [(['de', 'fr'], ('fr', 'de')), ([1, 0], 2)]
)
def test_a_field_of_rows_is_their_id(values, ids, tmp_path):
  task = register(tmp_path, 'my_rows', values, id_key='lang')
  name = example_ids.with_ids(task, ids)
  assert found(name) == {'my_rows0': [2], 'my_rows1': [1]}
  with refused(f'{tmp_path}/my_rows.jsonl, line 1', values[0]):
    example_ids.with_ids(task, 1 if ids == 2 else ('fr',))


def register_own(values, steps=(), files=None):
  """A task of SeqIO whose rows have a column of ids."""
  columns = {
      'inputs': ['x', 'y'], 'targets': ['a', 'a'], 'example_id': values
  }
  feature = seqio.Feature(seqio.ByteVocabulary())

  def rows(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(columns)

  return seqio.TaskRegistry.add(
      'my_own',
      source=files or seqio.FunctionDataSource(rows, ['train']),
      preprocessors=[*steps, seqio.preprocessors.tokenize],
      output_features={'inputs': feature, 'targets': feature},
  )


@pytest.mark.parametrize('values', [[1, 0], ['1', '0']])
@pytest.mark.parametrize('ids', [2, ('0', '1')])
def test_tasks_of_seqio_may_have_ids(ids, values):
  register_own(values)
  assert found(example_ids.with_ids('my_own', ids)) == {'x': [2], 'y': [1]}
  with refused('example_id of my_own', 'EXAMPLE_IDS', '1'):
    found(example_ids.with_ids('my_own', ids[:1] if ids != 2 else 1))


@pytest.mark.parametrize('ids', [2, ('0', '1')])
@pytest.mark.parametrize('value', ['de', '99999999999'])
def test_ids_that_are_none_are_refused_wherever_they_are(ids, value):
  register_own(['1', value])
  with pytest.raises(tf.errors.InvalidArgumentError, match='EXAMPLE_IDS'):
    found(example_ids.with_ids('my_own', ids))
  seqio.TaskRegistry.remove('my_own')
  register_own([value, '1'])
  with refused('example_id of my_own', value):
    found(example_ids.with_ids('my_own', ids))


def test_a_task_by_name_reads_the_cache_of_its_rows(tmp_path):
  source = seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: (
      tf.data.Dataset.from_tensors({'inputs': 'x', 'targets': 'a'})
  ), ['train'])
  register_own([], [seqio.CacheDatasetPlaceholder(required=True)], source)
  cache = tmp_path / 'my_own'
  cache.mkdir()
  (cache / 'COMPLETED').touch()
  seqio.set_global_cache_dirs([str(tmp_path)])
  name = example_ids.with_ids('my_own', ('my_own',), by_name=True)
  (task,) = catalog.task_names(name)
  assert task != 'my_own'
  assert seqio.TaskRegistry.get(task).cache_dir == str(cache)


def test_examples_are_drawn_as_the_mixture_says(tmp_path):
  def in_turn(datasets, rates, seed):
    del rates, seed
    return tf.data.Dataset.choose_from_datasets(
        datasets, tf.data.Dataset.from_tensor_slices(np.int64([1, 0, 1]))
    )

  tasks = [register(tmp_path, f'my_{x}') for x in 'ab']
  seqio.MixtureRegistry.add('my_both', tasks, 1.0, sample_fn=in_turn)
  name = example_ids.with_ids('my_both', ('my_a', 'my_b'))
  assert list(found(name).values()) == [[2], [1], [2]]


def test_choices_have_the_id_of_their_question(tmp_path):
  task = register(
      tmp_path, 'my_choice', ['de', 'fr'], id_key='lang', choices=('a', 'b')
  )
  name = example_ids.with_ids(task, ('de', 'fr'))
  assert found(name) == {'my_choice0': [1], 'my_choice1': [2]}


def test_rows_without_an_id_are_refused(tmp_path):
  with refused(f'{tmp_path}/my_rows.jsonl, line 2', 'lang', 'None'):
    register(tmp_path, 'my_rows', ['de', None], id_key='lang')


def test_prompts_have_the_ids_of_the_run():
  assert example_ids.of_prompts([None], None) is None
  assert example_ids.of_prompts(['b', 'a'], ('a', 'b')) == [2, 1]
  assert example_ids.of_prompts(['1', 0], 2) == [2, 1]
  for values, ids in ((['a'], None), ([None], ('a',)), (['c'], ('a',))):
    with refused('--example_id'):
      example_ids.of_prompts(values, ids)
  lines = ['{"inputs": "x", "example_id": "a"}', '{"inputs": "y"}']
  assert example_ids.read_rows(lines) == (['x', 'y'], ['a', None])
  for line in (
      'x', '["a"]', '{"inputs": 3}', '{"inputs": "a\\ud800"}',
      '{"inputs": "a", "x": NaN}', '{"inputs": "a", "inputs": "b"}',
      '[' * 99_999,
  ):
    with refused('line 2'):
      example_ids.read_rows([lines[0], line])
