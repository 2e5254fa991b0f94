# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of users' own files as tasks."""

import gzip
import json

import gin
import pytest
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import local
from moe_peft.data import registration

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
  with pytest.raises(errors.UserError, match='inputs of up to 3 tokens'):
    catalog.check_feature_lengths(name, {'inputs': 2, 'targets': 3})


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
  with pytest.raises(
      errors.UserError, match="a.tfrecord, record 2: 'targets' must be"
  ):
    local.register_task('my_task', train=path)


@pytest.mark.parametrize('content', [b'no records', b''])
def test_broken_or_empty_tfrecord(tmp_path, content):
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match='a.tfrecord (cannot|is empty)'):
    local.register_task('my_task', train=str(path))


def test_records_that_are_no_examples(tmp_path):
  path = _tfrecord(tmp_path / 'a.tfrecord', [b'\xff\xff\xff'])
  with pytest.raises(errors.UserError, match='record 1: not a tf.train'):
    local.register_task('my_task', train=path)


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"inputs": "q", "targets": ', 'line 2: broken JSON at column'),
        ('["q", "a"]', 'line 2: each line must be one JSON object'),
        ('{"input": "q", "targets": "a"}', "line 2: no key 'inputs'.*'input'"),
        ('{"inputs": "q", "targets": 3}', "line 2: 'targets' must be"),
        ('{"inputs": "q", "targets": null}', "line 2: 'targets' must be"),
        ('{"inputs": " ", "targets": "a"}', "line 2: 'inputs' must be"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = _write(tmp_path / 'a.jsonl', [_row(0), line, _row(1)])
  with pytest.raises(errors.UserError, match=f'a.jsonl, {message}'):
    local.register_task('my_task', train=path)
  assert 'my_task' not in seqio.TaskRegistry.names()


def test_lines_that_are_not_utf8(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"inputs": "q", "targets": "a"}\n\xff\n')
  with pytest.raises(errors.UserError, match='line 2: not UTF-8'):
    local.register_task('my_task', train=str(path))


def test_files_that_cannot_be_used(tmp_path):
  with pytest.raises(errors.UserError, match='not found: .*absent.jsonl'):
    local.register_task('my_task', train=str(tmp_path / 'absent.jsonl'))
  with pytest.raises(errors.UserError, match='not found'):
    local.register_task('my_task', train=str(tmp_path))
  empty = _write(tmp_path / 'empty.jsonl', ['', ' '])
  with pytest.raises(errors.UserError, match='empty.jsonl is empty'):
    local.register_task('my_task', train=empty)
  other = _write(tmp_path / 'a.csv', ['q,a'])
  with pytest.raises(errors.UserError, match='a.csv: unknown format'):
    local.register_task('my_task', train=other)
  zipped = _write(tmp_path / 'a.jsonl.gz', ['{}'])
  with pytest.raises(errors.UserError, match='a.jsonl.gz cannot be read'):
    local.register_task('my_task', train=zipped)


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
    with pytest.raises(errors.UserError, match='split_fractions must be'):
      local.register_task('my_other', data=path, split_fractions=bad)
  path = _write(tmp_path / 'b.jsonl', [_row(0)])
  with pytest.raises(errors.UserError, match='1 rows are too few'):
    local.register_task('my_other', data=path)


def test_files_and_data_exclude_each_other(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  for files in ({}, {'train': path, 'data': path}):
    with pytest.raises(errors.UserError, match='either train'):
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
    'arguments, message',
    [
        ({'choices': ['yes']}, 'two or more different'),
        ({'choices': ['yes', 'yes']}, 'two or more different'),
        ({'choices': 'yes'}, 'two or more different'),
        ({'choices': ['x', 'y']}, "line 1: 'targets' is 'a0', which is none"),
        ({'choices': ['a', 'b'], 'choices_key': 'c'}, 'not both'),
        ({'choices': ['a0', 'b'], 'metrics': ['bleu']}, 'leave metrics out'),
        ({'choices_key': 'c'}, "line 1: no key 'c'"),
        ({'choices_key': 'inputs'}, "line 1: 'inputs' must be a list"),
        ({'choices_key': 'one'}, "line 1: 'one' needs two or more"),
        ({'choices_key': 'mixed'}, "line 1: 'mixed' must be a nonempty string"),
        ({'metrics': ['blue']}, "Unknown metric 'blue'; nearest names: bleu"),
        ({'name': 'my task'}, "Bad task name 'my task'"),
        ({'name': 'past_tense'}, 'already another task'),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
  path = _write(
      tmp_path / 'a.jsonl', [_row(0, one=['a0'], mixed=['a0', 1])]
  )
  with pytest.raises(errors.UserError, match=message):
    local.register_task(**{'name': 'my_task', 'train': path, **arguments})


def test_targets_that_a_metric_cannot_judge_are_named(tmp_path):
  rows = [
      {'inputs': 'q0', 'targets': 'So it is 4.'},
      {'inputs': 'q1', 'targets': 'many'},
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  assert local.register_task('my_task', train=path) == 'my_task'
  with pytest.raises(errors.UserError) as error:
    local.register_task('my_other', train=path, metrics='numeric_accuracy')
  assert f"{path}, line 2: numeric_accuracy: the target 'many' has no" in str(
      error.value
  )
  assert 'my_other' not in seqio.TaskRegistry.names()


def test_registering_again(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [_row(0)])
  assert local.register_task('my_task', train=path) == 'my_task'
  assert local.register_task('my_task', train=path) == 'my_task'
  with pytest.raises(errors.UserError, match="train = .*, now train = None"):
    local.register_task('my_task', test=path)
  with pytest.raises(errors.UserError, match='already another task'):
    local.register_mixture('my_task', ['past_tense'])


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
  with pytest.raises(errors.UserError, match='all above 0'):
    local.register_mixture('my_bad', tasks, rates=[1.0, 0.0])
  with pytest.raises(errors.UserError, match="Unknown task.*'my_smal'"):
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


def test_errors_come_through_gin(tmp_path):
  gin.parse_config(f"""
      from __gin__ import dynamic_registration
      from moe_peft.data import local

      local.register_task.name = 'my_task'
      local.register_task.train = '{tmp_path}/absent.jsonl'
  """)
  with pytest.raises(errors.UserError, match='absent.jsonl'):
    gin.get_configurable(local.register_task)()
