# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rank classification: the answer is the choice with the highest likelihood.

Preprocessors that make one example of each answer choice, and the metrics that
put the choices of a question together again. Values are percentages, 0 to 100.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from moe_peft.data import metrics
from moe_peft.data import rows


class RankTarget(NamedTuple):
  """What `rank_accuracy` knows about one scored answer choice.

  Attributes:
    question: Number of the question.
    choice: Number of the choice.
    is_correct: Whether this choice is the answer.
    num_choices: How many choices the question has; 0 if the data do not say
      (the released P3).
    num_tokens: Length of the choice in tokens, EOS included.
  """

  question: int
  choice: int
  is_correct: bool
  num_choices: int
  num_tokens: int


def rank_classification(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes one example per answer choice; in training only the right one.

  Each incoming example has `inputs` <string>[], `choices`
  <string>[num_choices], `label` <int32>[] (index of the right choice) and
  `training` <bool>[]. Each outgoing example has `inputs`, `targets` (the
  choice) and, for `rank_accuracy`, `idx` <int32>[2] (question, choice),
  `is_correct` <bool>[] and `num_choices` <int32>[]. The metric groups by
  `idx`, so batches and shards may cut through the choices of a question.
  """

  def expand(question, example):
    count = tf.size(example['choices'])
    is_correct = tf.equal(tf.range(count), example['label'])
    keep = tf.logical_or(is_correct, ~example['training'])
    idx = tf.stack(
        [tf.repeat(tf.cast(question, tf.int32), count), tf.range(count)], axis=1
    )
    features = {
        'inputs': tf.repeat(example['inputs'], count),
        'targets': example['choices'],
        'idx': idx,
        'is_correct': is_correct,
        'num_choices': tf.repeat(count, count),
    }
    if rows.EXAMPLE_ID in example:
      features[rows.EXAMPLE_ID] = tf.repeat(example[rows.EXAMPLE_ID], count)
    return tf.data.Dataset.from_tensor_slices(
        {k: tf.boolean_mask(v, keep) for k, v in features.items()}
    )

  return dataset.enumerate().flat_map(expand)


def first_questions(
    dataset: tf.data.Dataset, *, limit: int | None
) -> tf.data.Dataset:
  """Keeps the first questions of an evaluation; training keeps all.

  Args:
    dataset: Examples as `rank_classification` expects them.
    limit: How many, or None for all.
  """
  if limit is None:
    return dataset
  return (
      dataset.enumerate()
      .filter(lambda number, example: example['training'] | (number < limit))
      .map(lambda _, example: example)
  )


def leave_out_long_choices(
    dataset: tf.data.Dataset, output_features, sequence_length=None
) -> tf.data.Dataset:
  """Leaves out questions of which some choice would have to be cut.

  Cut choices may be equal, and which one is right may stand at their ends.

  Args:
    dataset: Examples as `rank_classification` expects them.
    output_features: SeqIO features.
    sequence_length: Lengths of the features, None for no limit.
  """
  if not sequence_length or sequence_length.get('targets') is None:
    return dataset
  feature = output_features['targets']
  limit = sequence_length['targets'] - int(feature.add_eos)

  def fits(example):
    sizes = tf.map_fn(
        lambda choice: tf.size(feature.vocabulary.encode_tf(choice)),
        example['choices'],
        fn_output_signature=tf.int32,
    )
    return tf.reduce_max(sizes) <= limit

  return dataset.filter(fits)


@seqio.map_over_dataset
def keep_end_of_inputs(example, output_features, sequence_length=None):
  """Cuts long inputs at their beginning: the question stands at the end."""
  if not sequence_length or sequence_length.get('inputs') is None:
    return example
  limit = sequence_length['inputs'] - int(output_features['inputs'].add_eos)
  return example | {'inputs': example['inputs'][-limit:]}


def rank_target(
    text: str, example: Mapping[str, Any], is_target: bool = False
) -> str | RankTarget:
  """SeqIO postprocessor of tasks with answer choices.

  Args:
    text: The decoded text.
    example: The example, with the features that
      `rank_classification` adds.
    is_target: Whether `text` is the target, not a prediction.

  Returns:
    A `RankTarget` for a target; a prediction is returned as it is.
  """
  if not is_target:
    return text
  question, choice = example['idx']
  return RankTarget(
      question=int(question),
      choice=int(choice),
      is_correct=bool(example['is_correct']),
      num_choices=int(example.get('num_choices', 0)),
      num_tokens=len(example['targets']),
  )


def rank_accuracy(
    targets: Sequence[RankTarget],
    scores: Sequence[float] | tuple[Sequence[float], Any],
    length_normalized: bool = False,
) -> dict[str, float]:
  """Percentage of questions whose right choice has the highest score.

  Choices are put together by their question number, wherever in `targets`
  they are. A question of which choices are missing (an evaluation cut after
  `num_examples`) does not count. Of equal scores the first choice wins.

  Args:
    targets: One entry per choice.
    scores: <float>[len(targets)], the summed log-likelihood of each choice;
      also a tuple of which this is the first element (T5X's intermediates).
    length_normalized: Divide the scores by the number of tokens.

  Raises:
    ValueError: The lengths differ, a score is not a number, or no question is
      complete.
  """
  if isinstance(scores, tuple):
    scores = scores[0]
  scores = np.asarray(scores, dtype=np.float64)
  metrics.check_lengths(targets, scores)
  if np.isnan(scores).any():
    raise ValueError('The scores hold NaN: the model has diverged.')
  questions = collections.defaultdict(dict)
  for target, score in zip(targets, scores, strict=True):
    if length_normalized:
      score = score / target.num_tokens
    questions[target.question][target.choice] = (score, target)
  hits = []
  for _, choices in sorted(questions.items()):
    ordered = [choices[choice] for choice in sorted(choices)]
    if ordered[0][1].num_choices in (0, len(ordered)):
      _, best = max(ordered, key=lambda scored: scored[0])
      hits.append(best.is_correct)
  if not hits:
    raise ValueError('No question has all of its choices scored.')
  return {'accuracy': metrics.RowMean(hits)}


def rank_accuracy_per_token(
    targets: Sequence[RankTarget],
    scores: Sequence[float] | tuple[Sequence[float], Any],
) -> dict[str, float]:
  """`rank_accuracy` of the mean log-likelihood of a token."""
  value = rank_accuracy(targets, scores, length_normalized=True)['accuracy']
  return {'accuracy_per_token': value}
