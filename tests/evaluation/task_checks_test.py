# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks that cannot be evaluated are refused, with what helps."""

import types

import pytest
import seqio
import tensorflow as tf

from moe_peft.evaluation import task_checks
from tests.refusals import refused

LENGTHS = {'inputs': 8, 'targets': 4}


def task(kind):
  metric = types.SimpleNamespace(model_output_type=kind)
  return types.SimpleNamespace(name='mine', metric_objs=[metric])


@pytest.mark.parametrize(('kind', 'num_rows', 'where'), [
    ('PREDICTION', 0, 'mine'),
    ('SCORE', 2, 'EVAL_EXAMPLES'),  # A question has three choices.
    ('PREDICTION_WITH_AUX', 3, 'mine'),
])
def test_what_cannot_be_evaluated_is_refused(kind, num_rows, where):
  kind = seqio.metrics.ModelOutputType[kind]
  examples = tf.data.Dataset.from_tensors({'num_choices': 3})
  with refused(where):
    task_checks.check(task(kind), 'test', num_rows, examples, LENGTHS)


def test_a_split_of_right_choices_alone_is_refused():
  score = task(seqio.metrics.ModelOutputType.SCORE)
  examples = lambda *is_correct: tf.data.Dataset.from_tensor_slices(
      {'num_choices': [2, 2], 'is_correct': list(is_correct)}
  )
  task_checks.check(score, 'test', 2, examples(True, False), LENGTHS)
  with refused('mine', 'train'):
    task_checks.check(score, 'train', 2, examples(True, True), LENGTHS)


def test_texts_and_scores_can_be_evaluated():
  examples = tf.data.Dataset.from_tensors({'targets': 1})
  for kind in ('PREDICTION', 'SCORE'):
    kind = seqio.metrics.ModelOutputType[kind]
    task_checks.check(task(kind), 'test', 1, examples, LENGTHS)
    assert task_checks.output_types(task(kind)) == {kind}
