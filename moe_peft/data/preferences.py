# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Preference rows: a prompt with a chosen and a rejected answer.

A task of preferences has the token features `prompt`, `chosen` and `rejected`.
For training (DPO) a row becomes two ordinary rows, side by side in one example;
for evaluation it is a question with two choices.
"""

import collections
from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import ranking

ANSWERS = ('chosen', 'rejected')


def task_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
  """Lengths of the features of a preference task, and those they are made of.

  Args:
    lengths: TASK_FEATURE_LENGTHS, those of `inputs` and `targets`.
  """
  answers = dict.fromkeys(ANSWERS, lengths['targets'])
  return {**lengths, 'prompt': lengths['inputs'], **answers}


class PairConverter(seqio.FeatureConverter):
  """Makes each preference an example of two rows, `<int32>[2, length]`.

  The features are those of the model's own converter, the chosen answer first.
  """

  # Checked by the model's converter, row by row.
  TASK_FEATURES = MODEL_FEATURES = PACKING_FEATURE_DTYPES = {}

  def __init__(self, converter: seqio.FeatureConverter):
    """Takes the converter of single rows, without packing."""
    super().__init__(pack=False)
    self._converter = converter

  def __call__(self, ds, task_feature_lengths):
    rows = self._converter(
        ds.flat_map(_rows), _of_rows(task_feature_lengths)
    )
    return rows.batch(2, drop_remainder=True)

  def _convert_features(self, ds, task_feature_lengths):
    raise NotImplementedError  # __call__ does it.

  def get_model_feature_lengths(self, task_feature_lengths):
    return self._converter.get_model_feature_lengths(
        _of_rows(task_feature_lengths)
    )


def _of_rows(lengths: Mapping[str, int]) -> dict[str, int]:
  """Inverse of `task_lengths`."""
  return {name: lengths[name] for name in ('inputs', 'targets')}


def _rows(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
  """The chosen and the rejected row of a preference."""
  chosen, rejected = (
      tf.data.Dataset.from_tensors(
          {'inputs': example['prompt'], 'targets': example[answer]}
      )
      for answer in ANSWERS
  )
  return chosen.concatenate(rejected)


def ranked(task: str) -> str:
  """Registers the questions of a preference task, to evaluate them.

  Which answer is likelier is rank classification of two choices, in turn the
  first and the second being right. `margin` is the mean difference of their
  log-likelihoods in nats: times beta, what it gains over the base is the reward
  margin of DPO on these rows.

  Args:
    task: Name of a task with the features `prompt`, `chosen` and `rejected`.

  Returns:
    The name of the task of questions, `TASK.ranked`; one that has `inputs` and
    `targets` is returned as it is.

  Raises:
    errors.UserError: Unknown name, or a task that has neither.
  """
  source = catalog.get_task_or_mixture(task)
  features = source.output_features
  if {'inputs', 'targets'} <= features.keys():
    return task
  if isinstance(source, seqio.Mixture) or not (
      {'prompt', *ANSWERS} <= features.keys()
  ):
    raise errors.UserError(
        f'{task!r} has the features {", ".join(sorted(features))}.',
        'MIXTURE_OR_TASK_NAME',
        'DPO takes a task (no mixture) with prompt, chosen and rejected.',
    )
  name = f'{task}.ranked'
  if name not in seqio.TaskRegistry.names():

    def questions(dataset, sequence_length):
      lengths = sequence_length and task_lengths(sequence_length)
      tokens = source.preprocess_postcache(
          source.preprocess_precache(dataset), sequence_length=lengths
      )
      return tokens.enumerate().flat_map(_choices)

    seqio.TaskRegistry.add(
        name,
        source=source.source,
        preprocessors=[questions],
        output_features={
            'inputs': features['prompt'], 'targets': features['chosen']
        },
        metric_fns=[ranking.rank_accuracy, margin],
        postprocess_fn=ranking.rank_target,
    )
  return name


def _choices(question, example) -> tf.data.Dataset:
  """Two choices as `ranking.rank_classification` writes them."""
  right = tf.cast(question % 2, tf.int32)

  def choice(number):
    is_correct = tf.equal(number, right)
    return {
        'inputs': example['prompt'],
        'targets': tf.cond(
            is_correct, lambda: example['chosen'], lambda: example['rejected']
        ),
        'idx': tf.stack([tf.cast(question, tf.int32), number]),
        'is_correct': is_correct,
        'num_choices': tf.constant(2),
    }

  return tf.data.Dataset.range(2, output_type=tf.int32).map(choice)


def margin(targets, scores) -> dict[str, float]:
  """Mean log-likelihood of the chosen answers minus the rejected ones', nats.

  A pair of which one answer is missing (an evaluation cut after `num_examples`)
  does not count.

  Args:
    targets: `ranking.RankTarget`, one for each answer.
    scores: <float>[len(targets)], summed log-likelihoods; also a tuple of which
      this is the first element.
  """
  scores = scores[0] if isinstance(scores, tuple) else scores
  pairs = collections.defaultdict(list)
  for target, score in zip(targets, scores, strict=True):
    sign = 1.0 if target.is_correct else -1.0
    pairs[target.question].append(sign * float(score))
  margins = [sum(pair) for pair in pairs.values() if len(pair) == len(ANSWERS)]
  return {'margin': float(np.mean(margins))}
