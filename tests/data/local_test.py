# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of users' own files as tasks."""

import gzip
import json

import gin
import pytest
import seqio
import tensorflow as tf

from moe_peft.data import catalog
from moe_peft.data import local
from moe_peft.data import registration
from moe_peft.data.sets import words as _words  # noqa: F401 (registers tasks)
from tests import refusals
from tests.fuzz import mutations

_LENGTHS = {'inputs': 16, 'targets': 8}


@pytest.fixture(autouse=True)
def _forget_tasks():
  """Each test registers names of its own that start with "my_"."""
  yield
  for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
    for name in [n for n in registry.names() if n.startswith('my_')]:
      registry.remove(name)
      registration.RECORDS.pop(name, None)
  gin.clear_config()


def _write(path, rows):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
  return str(path)


def _row(number, **more):
  return {'inputs': f'q{number}', 'targets': f'a{number}', **more}


def _texts(name, split, feature='inputs'):
  dataset = catalog.get_task_or_mixture(name).get_dataset(
      None, split, shuffle=False
  )
  return [
      x[f'{feature}_pretokenized'].decode() for x in dataset.as_numpy_iterator()
  ]


def test_json_lines(tmp_path):
  train = _write(tmp_path / 'a.jsonl', [_row(0), '', _row(1, other=3)])
  test = _write(tmp_path / 'b.jsonl', [_row(2)])
  name = local.register_task('my_task', train=train, test=test)
  assert name == 'my_task'
  assert set(catalog.get_task_or_mixture(name).splits) == {'train', 'test'}
  assert _texts(name, 'train') == ['q0', 'q1']
  assert _texts(name, 'test', 'targets') == ['a2']
  assert catalog.primary_metric(name) == 'exact_match'
  with refusals.refused('TASK_FEATURE_LENGTHS', "{'inputs': 3, 'targets': 5}"):
    catalog.check_feature_lengths(name, {'inputs': 2, 'targets': 5})


def test_several_files_other_keys_and_metrics(tmp_path):
  for i in range(3):
    _write(tmp_path / f'part{i}.jsonl', [{'question': f'q{i}', 'answer': 'a'}])
  name = local.register_task(
      'my_task',
      train=str(tmp_path / 'part[01].jsonl'),
      validation=[str(tmp_path / 'part2.jsonl')],
      inputs_key='question',
      targets_key='answer',
      metrics=['rouge', 'bleu'],
  )
  assert _texts(name, 'train') == ['q0', 'q1']
  assert _texts(name, 'validation') == ['q2']
  assert catalog.primary_metric(name) == 'rougeL'
  assert len(catalog.get_task_or_mixture(name).metric_fns) == 2


def test_compressed_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl.gz'
  path.write_bytes(gzip.compress(b'{"inputs": "x", "targets": "y"}\n'))
  assert _texts(local.register_task('my_task', train=str(path)), 'train') == [
      'x'
  ]


def _example(**features):
  return tf.train.Example(features=tf.train.Features(feature=features))


def _bytes(*values):
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(*values):
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _tfrecord(path, examples):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for example in examples:
      writer.write(
          example if isinstance(example, bytes) else example.SerializeToString()
      )
  return str(path)


def test_tfrecord(tmp_path):
  path = _tfrecord(
      tmp_path / 'a.tfrecord-00000-of-00001',
      [
          _example(
              inputs=_bytes(b'q'), targets=_bytes(b'y'), image=_bytes(b'\xff'),
              options=_bytes(b'x', b'y'), number=_ints(3),
          )
      ],
  )
  name = local.register_task('my_task', train=path, choices_key='options')
  assert _texts(name, 'train', 'targets') == ['y']


def test_tfrecord_with_numbers_for_texts(tmp_path):
  path = _tfrecord(
      tmp_path / 'a.tfrecord',
      [
          _example(inputs=_bytes(b'q'), targets=_bytes(b'a')),
          _example(inputs=_bytes(b'q'), targets=_ints(1)),
      ],
  )
  with refusals.refused(f'{path}, record 2', "'targets'", '1'):
    local.register_task('my_task', train=path)


def test_a_record_that_says_it_is_longer_than_its_file(tmp_path):
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(mutations.checked((2**40).to_bytes(8, 'little')) + b'abc')
  with refusals.refused(path, 'cut short'):
    local.register_task('my_task', train=str(path))


@pytest.mark.parametrize('content', [b'no records', b''])
def test_broken_or_empty_tfrecord(tmp_path, content):
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(content)
  with refusals.refused(path):
    local.register_task('my_task', train=str(path))


def test_records_that_are_no_examples(tmp_path):
  path = _tfrecord(tmp_path / 'a.tfrecord', [b'\xff\xff\xff'])
  with refusals.refused(f'{path}, record 1', 'tf.train.Example'):
    local.register_task('my_task', train=path)


@pytest.mark.parametrize(
    'line, names',
    [
        ('{"inputs": "q", "targets": ', ['column 28']),
        ('["q", "a"]', ['["q", "a"]']),
        ('[' * 100_000, []),
        ('{"inputs": "x\\ud800", "targets": "a"}', [r'\ud800']),
        ('{"input": "q", "targets": "a"}', ["'inputs'", "'input'?"]),
        ('{"inputs": "q", "targets": 3}', ["'targets'", '3']),
        ('{"inputs": "q", "targets": null}', ["'targets'", 'None']),
        ('{"inputs": " ", "targets": "a"}', ["'inputs'", "' '"]),
    ],
)
def test_bad_lines_are_named(tmp_path, line, names):
  path = _write(tmp_path / 'a.jsonl', [_row(0), line, _row(1)])
  with refusals.refused(f'{path}, line 2', *names):
    local.register_task('my_task', train=path)
  assert 'my_task' not in seqio.TaskRegistry.names()


def test_lines_that_are_not_utf8(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"inputs": "q", "targets": "a"}\n\xff\n')
  with refusals.refused(f'{path}, line 2', 'UTF-8'):
    local.register_task('my_task', train=str(path))


def test_files_that_cannot_be_used(tmp_path):
  for path in (
      tmp_path / 'absent.jsonl',
      tmp_path,
      _write(tmp_path / 'empty.jsonl', ['', ' ']),
      _write(tmp_path / 'a.csv', ['q,a']),
      _write(tmp_path / 'a.jsonl.gz', ['{}']),
  ):
    with refusals.refused(path):
      local.register_task('my_task', train=str(path))


def test_one_file_is_split_by_inputs(tmp_path):
  rows = [_row(i % 150) for i in range(300)]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task('my_task', data=path)
  splits = {s: _texts(name, s) for s in ('train', 'validation', 'test')}
  assert sorted(sum(splits.values(), [])) == sorted(r['inputs'] for r in rows)
  assert not set(splits['train']) & set(splits['validation'] + splits['test'])
  assert not set(splits['validation']) & set(splits['test'])
  assert 200 < len(splits['train']) < 280
  # Independent of the order of the rows.
  path = _write(tmp_path / 'b.jsonl', rows[::-1])
  name = local.register_task('my_other', data=path)
  assert set(_texts(name, 'test')) == set(splits['test'])


def test_fractions(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(i) for i in range(40)])
  name = local.register_task(
      'my_task', data=path, split_fractions=(0.5, 0, 0.5)
  )
  assert set(catalog.get_task_or_mixture(name).splits) == {'train', 'test'}
  for bad in ((0.5, 0.5), (0.9, 0.2, 0.1), (1.2, -0.2, 0)):
    with refusals.refused('local.register_task.split_fractions', bad):
      local.register_task('my_other', data=path, split_fractions=bad)
  path = _write(tmp_path / 'b.jsonl', [_row(0)])
  with refusals.refused('local.register_task.split_fractions', 'rows', 1):
    local.register_task('my_other', data=path)


def test_files_and_data_exclude_each_other(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  for files in ({}, {'train': path, 'data': path}):
    with refusals.refused('local.register_task.data', 'my_task'):
      local.register_task('my_task', **files)


def _scores(name, split):
  """Scores that prefer the second choice of every question."""
  evaluator = seqio.Evaluator(
      name, seqio.EncDecFeatureConverter(pack=False), eval_split=split,
      sequence_length=_LENGTHS,
  )
  examples = list(
      catalog.get_task_or_mixture(name)
      .get_dataset(_LENGTHS, split, shuffle=False).as_numpy_iterator()
  )

  def score(dataset, *unused):
    return [
        (int(i), float(examples[int(i)]['idx'][1] == 1))
        for i, _ in dataset.as_numpy_iterator()
    ]

  results, _ = evaluator.evaluate(
      compute_metrics=True, step=0, score_fn=score, predict_fn=None
  )
  return results.result()[name]


@pytest.mark.slow
def test_choices_of_all_rows(tmp_path):
  rows = [{'inputs': f'q{i}', 'targets': 'no' if i else 'yes'}
          for i in range(4)]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task(
      'my_task', train=path, test=path, choices=['yes', 'no']
  )
  assert _texts(name, 'train', 'targets') == ['yes', 'no', 'no', 'no']
  assert len(_texts(name, 'test')) == 8
  assert _scores(name, 'test') == {'accuracy': 75.0}
  assert catalog.primary_metric(name) == 'accuracy'


@pytest.mark.slow
def test_choices_of_each_row(tmp_path):
  rows = [
      {'inputs': 'q0', 'targets': 'b', 'options': ['a', 'b', 'c']},
      {'inputs': 'q1', 'targets': 'd', 'options': ['d', 'e']},
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task(
      'my_task', test=path, choices_key='options', length_normalized=True
  )
  assert _texts(name, 'test', 'targets') == ['a', 'b', 'c', 'd', 'e']
  assert _scores(name, 'test') == {'accuracy': 50.0}


@pytest.mark.parametrize(
    'arguments, where, names',
    [
        ({'choices': ['yes']}, 'choices', ["['yes']"]),
        ({'choices': ['yes', 'yes']}, 'choices', ["['yes', 'yes']"]),
        ({'choices': 'yes'}, 'choices', ["'yes'"]),
        ({'choices': ['a', 'b'], 'choices_key': 'c'}, 'choices', ["'c'"]),
        ({'choices': ['a0', 'b'], 'metrics': ['bleu']}, 'metrics', []),
    ],
)
def test_bad_arguments(tmp_path, arguments, where, names):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  with refusals.refused(f'local.register_task.{where}', *names):
    local.register_task('my_task', train=path, **arguments)


@pytest.mark.parametrize(
    'arguments, names',
    [
        ({'choices': ['x', 'y']}, ["'targets'", "'a0'", "['x', 'y']"]),
        ({'choices_key': 'c'}, ["'c'"]),
        ({'choices_key': 'inputs'}, ["'inputs'", "'q0'"]),
        ({'choices_key': 'one'}, ["'one'", "['a0']"]),
        ({'choices_key': 'mixed'}, ["'mixed'", "['a0', 1]"]),
    ],
)
def test_choices_that_do_not_fit_a_row(tmp_path, arguments, names):
  path = _write(
      tmp_path / 'a.jsonl', [_row(0, one=['a0'], mixed=['a0', 1])]
  )
  with refusals.refused(f'{path}, line 1', *names):
    local.register_task('my_task', train=path, **arguments)


@pytest.mark.parametrize('name', ['my task', 'past_tense'])
def test_names_that_cannot_be_used(tmp_path, name):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  with refusals.refused(name):
    local.register_task(name, train=path)


def test_unknown_metric(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  with refusals.refused('metrics', "'blue'", 'bleu'):
    local.register_task('my_task', train=path, metrics=['blue'])


def test_targets_that_a_metric_cannot_judge_are_named(tmp_path):
  rows = [
      {'inputs': 'q0', 'targets': 'So it is 4.'},
      {'inputs': 'q1', 'targets': 'many'},
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  assert local.register_task('my_task', train=path) == 'my_task'
  with refusals.refused(f'{path}, line 2', "'many'", 'number'):
    local.register_task('my_other', train=path, metrics='numeric_accuracy')
  assert 'my_other' not in seqio.TaskRegistry.names()


def test_registering_again(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  assert local.register_task('my_task', train=path) == 'my_task'
  assert local.register_task('my_task', train=path) == 'my_task'
  with refusals.refused('my_task', f'train = {path!r}', 'train = None'):
    local.register_task('my_task', test=path)
  with refusals.refused('my_task'):
    local.register_mixture('my_task', ['past_tense'])


@pytest.mark.parametrize(
    'name, value', [('turns', 'last'), ('loss', 'all'), ('template', 'chatml')]
)
def test_what_only_conversations_have_is_refused(tmp_path, name, value):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  with refusals.refused(
      f'local.register_task.{name}', value, 'inputs and targets'
  ):
    local.register_task('my_task', train=path, **{name: value})


def test_mixture(tmp_path):
  small = _write(tmp_path / 'a.jsonl', [_row(0)])
  large = _write(tmp_path / 'b.jsonl', [_row(i) for i in range(1, 10)])
  tasks = [
      local.register_task('my_small', train=small),
      local.register_task('my_large', train=large),
  ]
  assert local.register_mixture('my_mixture', tasks) == 'my_mixture'
  assert local.register_mixture('my_mixture', tasks) == 'my_mixture'
  mixture = catalog.get_task_or_mixture('my_mixture')
  assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
      'my_small': 1.0, 'my_large': 9.0
  }
  for rates in ([1.0, 0.0], [float('inf'), 1.0], [1.0]):
    with refusals.refused('local.register_mixture.rates', rates):
      local.register_mixture('my_bad', tasks, rates=rates)
  for wrong in ([], ['my_small', 'my_small']):
    with refusals.refused('local.register_mixture.tasks', wrong):
      local.register_mixture('my_bad', wrong)
  assert local.register_mixture('my_one', 'my_small') == 'my_one'
  with refusals.refused('MIXTURE_OR_TASK_NAME', "'my_smal'"):
    local.register_mixture('my_bad', ['my_smal'])


def test_one_gin_binding(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(i) for i in range(50)])
  gin.parse_config(f"""
      from __gin__ import dynamic_registration
      import seqio
      from moe_peft.data import local

      MIXTURE_OR_TASK_NAME = @local.register_task()
      local.register_task.name = 'my_task'
      local.register_task.data = '{path}'
      seqio.get_dataset.mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  """)
  get_dataset = gin.get_configurable(seqio.get_dataset)
  for _ in range(2):  # T5X asks for the name several times.
    dataset = get_dataset(
        task_feature_lengths=_LENGTHS,
        dataset_split='train',
        shuffle=True,
        seed=0,
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
    )
    (batch,) = dataset.batch(4).take(1).as_numpy_iterator()
    assert batch['encoder_input_tokens'].shape == (4, 16)


@pytest.mark.slow
def test_errors_come_through_gin(tmp_path):
  gin.parse_config(f"""
      from __gin__ import dynamic_registration
      from moe_peft.data import local

      local.register_task.name = 'my_task'
      local.register_task.train = '{tmp_path}/absent.jsonl'
  """)
  with refusals.refused(f'{tmp_path}/absent.jsonl'):
    gin.get_configurable(local.register_task)()
