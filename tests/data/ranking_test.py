# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of rank classification, from one example per choice to the accuracy."""

import numpy as np
import pytest
import tensorflow as tf

from moe_peft.data import ranking


def _questions(training):
  return tf.data.Dataset.from_tensor_slices({
      'inputs': ['q0', 'q1', 'q2'],
      'choices': tf.ragged.constant([['a', 'b'], ['c', 'd', 'e'], ['f', 'g']]),
      'label': [1, 2, 0],
      'training': [training] * 3,
  })


def test_rank_classification_makes_one_example_per_choice():
  examples = list(
      ranking.rank_classification(_questions(False)).as_numpy_iterator()
  )
  found = [
      (x['inputs'].decode(), x['targets'].decode(), tuple(x['idx']),
       bool(x['is_correct']), int(x['num_choices']))
      for x in examples
  ]
  assert found == [
      ('q0', 'a', (0, 0), False, 2),
      ('q0', 'b', (0, 1), True, 2),
      ('q1', 'c', (1, 0), False, 3),
      ('q1', 'd', (1, 1), False, 3),
      ('q1', 'e', (1, 2), True, 3),
      ('q2', 'f', (2, 0), True, 2),
      ('q2', 'g', (2, 1), False, 2),
  ]


def test_rank_classification_trains_on_the_right_choice_only():
  examples = ranking.rank_classification(_questions(True))
  assert [x['targets'] for x in examples.as_numpy_iterator()] == [
      b'b', b'e', b'f'
  ]


def _ranking(answers, num_choices=3):
  return [
      ranking.RankTarget(question, choice, choice == answer, num_choices, 1)
      for question, answer in enumerate(answers)
      for choice in range(num_choices)
  ]


def test_rank_accuracy_takes_the_best_choice():
  targets = _ranking([0, 2])
  scores = [-1.0, -2.0, -3.0, -1.0, -2.0, -3.0]
  assert ranking.rank_accuracy(targets, scores) == {'accuracy': 50.0}
  assert ranking.rank_accuracy(targets, (scores, {'aux': 1})) == {
      'accuracy': 50.0
  }


def test_rank_accuracy_is_independent_of_the_order():
  rng = np.random.default_rng(0)
  targets = _ranking(rng.integers(3, size=50))
  scores = rng.normal(size=150)
  expected = ranking.rank_accuracy(targets, scores)
  assert 0 < expected['accuracy'] < 100
  order = rng.permutation(150)
  assert ranking.rank_accuracy(
      [targets[i] for i in order], scores[order]
  ) == expected


def test_rank_accuracy_of_equal_scores_is_that_of_the_first_choice():
  assert ranking.rank_accuracy(_ranking([0, 1, 2, 1]), np.zeros(12)) == {
      'accuracy': 25.0
  }


def test_rank_accuracy_normalized_by_length():
  targets = [
      ranking.RankTarget(0, 0, True, 2, 4),
      ranking.RankTarget(0, 1, False, 2, 1),
  ]
  scores = [-4.0, -2.0]
  assert ranking.rank_accuracy(targets, scores) == {'accuracy': 0.0}
  assert ranking.rank_accuracy(targets, scores, length_normalized=True) == {
      'accuracy': 100.0
  }


def test_rank_accuracy_leaves_cut_questions_out():
  targets = _ranking([0, 2])[:5]
  assert ranking.rank_accuracy(targets, [0.0, -1, -2, 5, 6]) == {
      'accuracy': 100.0
  }
  with pytest.raises(ValueError, match='all of its choices'):
    ranking.rank_accuracy(targets[:2], [0.0, 1.0])


@pytest.mark.parametrize(
    'scores', [[0.0] * 5, [0.0] * 5 + [float('nan')]]
)
def test_rank_accuracy_refuses_bad_scores(scores):
  with pytest.raises(ValueError, match='outputs|NaN'):
    ranking.rank_accuracy(_ranking([0, 1]), scores)


def test_rank_target():
  example = {
      'idx': np.array([3, 1]), 'is_correct': np.True_,
      'num_choices': np.int32(4), 'targets': np.array([5, 6, 1]),
  }
  assert ranking.rank_target('x', example, is_target=True) == (
      ranking.RankTarget(3, 1, True, 4, 3)
  )
  assert ranking.rank_target('x', example, is_target=False) == 'x'
