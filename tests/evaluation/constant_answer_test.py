# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the figure that stands beside all others."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft.data import local
from moe_peft.data import ranking
from moe_peft.data import vocabularies
from moe_peft.evaluation import constant_answer
from moe_peft.runs import results_file
from moe_peft.training import scoring


def _measure(tmp_path, name, rows, **options):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  local.register_task(name, validation=str(path), **options)
  task = seqio.TaskRegistry.get(name)
  dataset = task.get_dataset(None, split='validation', shuffle=False)
  return constant_answer.measure(task, dataset.as_numpy_iterator())


def test_text_is_answered_by_the_most_frequent_target(tmp_path):
  rows = [
      {'inputs': f'color {i}', 'targets': color}
      for i, color in enumerate(['red', 'blue', 'red', 'red', 'green'])
  ]
  values = _measure(tmp_path, 'constant_text', rows)
  assert values == {'exact_match': pytest.approx(60.0)}


def test_choices_are_answered_by_the_best_place(tmp_path):
  # The right choice is the second, second, first and third one.
  rows = [
      {'inputs': '?', 'targets': targets, 'options': list(options)}
      for options, targets in (
          ('abc', 'b'), ('def', 'e'), ('gh', 'g'), ('ijk', 'k')
      )
  ]
  values = _measure(
      tmp_path, 'constant_choices', rows, choices_key='options'
  )
  assert values == {'accuracy': pytest.approx(50.0)}


def _foreign(name, rows, metric_fns, postprocess_fn=None, steps=()):
  """The value for a task of another's, from rows of text."""

  def dataset_fn(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(rows)

  feature = seqio.Feature(vocabularies.byte_vocabulary(), add_eos=False)
  task = seqio.Task(
      name,
      source=seqio.FunctionDataSource(dataset_fn, splits=['test']),
      preprocessors=[*steps, seqio.preprocessors.tokenize],
      output_features={'inputs': feature, 'targets': feature},
      postprocess_fn=postprocess_fn,
      metric_fns=metric_fns,
  )
  dataset = task.get_dataset(None, split='test', shuffle=False)
  return constant_answer.measure(task, dataset.as_numpy_iterator())


def test_targets_and_predictions_are_postprocessed_as_by_seqio():
  """Labels become numbers; a prediction may be read in another way."""
  labels = {'no': 0, 'yes': 1}

  def to_number(text, example, is_target):
    assert example['inputs_pretokenized'] == b'?'
    return labels[text] if is_target else labels[text] + 10

  def distance(targets, predictions):
    return {'distance': abs(np.subtract(targets, predictions)).mean()}

  rows = {'inputs': ['?'] * 4, 'targets': ['yes', 'no', 'yes', 'yes']}
  values = _foreign('constant_numbers', rows, [distance], to_number)
  assert values == {'distance': pytest.approx((10 + 11 + 10 + 10) / 4)}


def test_scored_choices_need_no_target_of_ours():
  """Targets of T5's rank classification are plain tuples."""

  def as_tuple(text, example, is_target):
    return (tuple(example['idx']), example['is_correct'])

  def right(targets, scores):
    return {'right': 100 * np.mean([s for (_, c), s in zip(
        targets, scores, strict=True) if c])}

  rows = {
      'inputs': ['?'] * 4, 'choices': [['a', 'b']] * 4, 'label': [1, 0, 1, 1],
      'training': [False] * 4,
  }
  steps = [ranking.rank_classification]
  assert _foreign('constant_places', rows, [right], as_tuple, steps) == {
      'right': pytest.approx(75.0)
  }


def test_what_has_no_constant_answer_is_left_out():
  def with_aux(targets, predictions, aux_values):
    raise AssertionError

  def perplexity(targets, scores):
    raise AssertionError

  rows = {'inputs': ['?'], 'targets': ['a']}
  assert _foreign('constant_none', rows, [with_aux, perplexity]) == {}
  table = scoring.table(results_file.Results(
      split='test', num_examples={'t': 1},
      base={'t': {'m': 1.0, 'loss': 3.0}},
      adapted={'t': {'m': 2.0, 'loss': 0.25}}, primary_metric={'t': 'm'},
  ))
  rows = list(zip(*(column.cells for column in table.columns), strict=True))
  assert rows == [
      ('t', 'm', '–', '1.0', '2.0'), ('', 'loss', '–', '3.000', '0.250')
  ]
