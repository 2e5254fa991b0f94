# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tasks can be evaluated here."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from moe_peft import errors

# These are what `evaluate` gives to metrics.
_OUTPUTS = {
    seqio.metrics.ModelOutputType.PREDICTION,
    seqio.metrics.ModelOutputType.SCORE,
}


def check(
    task: seqio.Task,
    split: str,
    num_rows: int,
    examples: tf.data.Dataset,
    lengths: Mapping[str, int],
) -> None:
  """Checks a task before anything is evaluated.

  Args:
    task: The task.
    split: The split to evaluate.
    num_rows: Rows that would be evaluated.
    examples: Their features.
    lengths: TASK_FEATURE_LENGTHS.

  Raises:
    errors.UserError: There is nothing to evaluate, no question would be whole
      or has a wrong choice, or a metric takes more than a text or a score.
  """
  if not num_rows:
    raise errors.UserError(
        f'The task has nothing to evaluate in its split {split!r}.',
        where=task.name,
        remedy='Choose another split. If every question has a choice that is '
        'too long, raise the targets of TASK_FEATURE_LENGTHS = '
        f'{dict(lengths)}.',
    )
  first = next(examples.as_numpy_iterator())
  choices = first.get('num_choices', 1)
  if num_rows < choices:
    raise errors.UserError(
        f'{task.name} has {choices} choices a question, each of them a row, '
        'so no question would be whole.',
        where='EVAL_EXAMPLES',
        remedy=f'Set it to {choices} or more.',
    )
  if choices > 1 and all(
      example.get('is_correct') for example in examples.as_numpy_iterator()
  ):
    raise errors.UserError(
        f'The split {split!r} has the right choices alone: it is there to '
        'train on.', where=task.name, remedy='Choose another split.',
    )
  if unknown := output_types(task) - _OUTPUTS:
    raise errors.UserError(
        f'The task has a metric of {unknown.pop().name}, which this '
        'evaluation does not compute.',
        where=task.name,
        remedy='Give it metrics of (targets, predictions) or (targets, '
        'scores), or evaluate it with T5X.',
    )


def output_types(task: seqio.Task) -> set[seqio.metrics.ModelOutputType]:
  """What the metrics of a task read."""
  return {metric.model_output_type for metric in task.metric_objs}
