# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SeqIO preprocessors: span corruption, and one example per answer choice."""

import numpy as np
import seqio
import tensorflow as tf

# Feature of eval rows of span corruption tasks; training rows have -1 here.
NOISE_SEED = 'noise_seed'


def random_partition(
    total: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Cuts `total` items into `parts` nonempty parts, all cuts equally likely.

  Args:
    total: <int32>[], at least `parts`.
    parts: <int32>[], at least 1.
    seed: <int32>[2].

  Returns:
    <int32>[parts], positive, with sum `total`.
  """
  cuts = tf.random.experimental.stateless_shuffle(
      tf.range(1, total), seed=seed
  )[: parts - 1]
  edges = tf.concat([[0], tf.sort(cuts), [total]], axis=0)
  return edges[1:] - edges[:-1]


def noise_mask(
    length: tf.Tensor,
    seed: tf.Tensor,
    *,
    noise_density: float,
    mean_noise_span_length: float,
) -> tf.Tensor:
  """Chooses spans to drop (span corruption of arXiv 1910.10683, 3.1.4).

  Unlike T5's, the spans may touch either end, because the strings are short:
  T5's scheme would never drop the first letter of a word. At least one token
  is dropped and at least one is kept.

  Args:
    length: <int32>[], at least 2.
    seed: <int32>[2].
    noise_density: wanted share of dropped tokens.
    mean_noise_span_length: wanted mean length of a span, in tokens.

  Returns:
    <bool>[length], True where a token is dropped.
  """
  size = tf.cast(length, tf.float32)
  noise = tf.cast(tf.round(size * noise_density), tf.int32)
  noise = tf.clip_by_value(noise, 1, length - 1)
  spans = tf.cast(
      tf.round(tf.cast(noise, tf.float32) / mean_noise_span_length), tf.int32
  )
  spans = tf.clip_by_value(spans, 1, tf.minimum(noise, length - noise + 1))
  seeds = tf.random.experimental.stateless_split(seed, 2)
  dropped = random_partition(noise, spans, seeds[0])
  # The outer two of the kept parts may be empty.
  kept = random_partition(length - noise + 2, spans + 1, seeds[1])
  kept = tf.concat([kept[:1] - 1, kept[1:-1], kept[-1:] - 1], axis=0)
  lengths = tf.concat(
      [tf.reshape(tf.stack([kept[:-1], dropped], axis=1), [-1]), kept[-1:]],
      axis=0,
  )
  return tf.repeat(tf.range(2 * spans + 1) % 2 == 1, lengths)


def corrupted_lengths(
    length: int, *, noise_density: float, mean_noise_span_length: float
) -> tuple[int, int]:
  """Lengths of inputs and targets, without EOS, of a corrupted string.

  They are the same for every seed; arguments as in `noise_mask`.
  """
  # float32 and rounding to even, as TensorFlow does it.
  noise = int(np.round(np.float32(length) * np.float32(noise_density)))
  noise = min(max(noise, 1), length - 1)
  spans = int(np.round(np.float32(noise) / np.float32(mean_noise_span_length)))
  spans = min(max(spans, 1), noise, length - noise + 1)
  return length - noise + spans, noise + spans


def _replace_spans(
    tokens: tf.Tensor, mask: tf.Tensor, vocab_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns what is left and what was dropped, joined by common sentinels."""
  starts = mask & ~tf.concat([[False], mask[:-1]], axis=0)
  sentinels = vocab_size - tf.cumsum(tf.cast(starts, tf.int32))
  inputs = tf.boolean_mask(tf.where(starts, sentinels, tokens), ~mask | starts)
  pairs = tf.stack([sentinels, tokens], axis=1)
  targets = tf.boolean_mask(pairs, tf.stack([starts, mask], axis=1))
  return inputs, targets


def corrupt_spans(
    dataset: tf.data.Dataset,
    output_features,
    *,
    noise_density: float,
    mean_noise_span_length: float,
) -> tf.data.Dataset:
  """Makes inputs and targets out of the tokens in `targets`.

  "colour" may become inputs "co<383>r" and targets "<383>lou". A training
  row is corrupted anew in each epoch; a row with a nonnegative `noise_seed` is
  always corrupted in the same way. Example shapes: `inputs`, `targets`
  <int32>[length].
  """
  vocabulary = output_features['targets'].vocabulary

  @seqio.map_over_dataset(num_seeds=1)
  def corrupt(example, seed):
    tokens = example['targets']
    fixed = example[NOISE_SEED]
    seed = tf.where(fixed < 0, tf.cast(seed, tf.int32), tf.stack([fixed, 0]))
    mask = noise_mask(
        tf.size(tokens),
        seed,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
    )
    inputs, targets = _replace_spans(tokens, mask, vocabulary.vocab_size)
    return {'inputs': inputs, 'targets': targets}

  return corrupt(dataset)


def rank_classification(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes one example per answer choice; in training only the right one.

  Each incoming example has `inputs` <string>[], `choices`
  <string>[num_choices], `label` <int32>[] (index of the right choice) and
  `training` <bool>[]. Each outgoing example has `inputs`, `targets` (the
  choice) and, for `metrics.rank_accuracy`, `idx` <int32>[2] (question, choice),
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
    return tf.data.Dataset.from_tensor_slices(
        {k: tf.boolean_mask(v, keep) for k, v in features.items()}
    )

  return dataset.enumerate().flat_map(expand)


def first_questions(
    dataset: tf.data.Dataset, *, limit: int | None
) -> tf.data.Dataset:
  """Keeps the first questions of an evaluation; training keeps all.

  Args:
    dataset: examples as `rank_classification` expects them.
    limit: how many, or None for all.
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
    dataset: examples as `rank_classification` expects them.
    output_features: SeqIO features.
    sequence_length: lengths of the features, None for no limit.
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
