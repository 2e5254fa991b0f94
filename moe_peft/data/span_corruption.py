# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Span corruption of short strings (arXiv 1910.10683, 3.1.4)."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """How much is dropped, and the preprocessor that does it.

  Attributes:
    noise_density: Wanted share of the tokens that are dropped.
    mean_noise_span_length: Wanted mean length of a dropped span, in tokens.
  """

  noise_density: float
  mean_noise_span_length: float

  def noise_mask(self, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Chooses spans to drop.

    Unlike T5's, the spans may touch either end, because the strings are short:
    T5's scheme would never drop the first letter of a word. At least one token
    is dropped and at least one is kept.

    Args:
      length: <int32>[], at least 2.
      seed: <int32>[2].

    Returns:
      <bool>[length], True where a token is dropped.
    """
    size = tf.cast(length, tf.float32)
    noise = tf.cast(tf.round(size * self.noise_density), tf.int32)
    noise = tf.clip_by_value(noise, 1, length - 1)
    spans = tf.cast(noise, tf.float32) / self.mean_noise_span_length
    spans = tf.cast(tf.round(spans), tf.int32)
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

  def lengths(self, length: int) -> tuple[int, int]:
    """Lengths of inputs and targets, without EOS, of a corrupted string.

    They are the same for every seed.

    Args:
      length: Tokens of the string, at least 2.
    """
    # float32 and rounding to even, as TensorFlow does it.
    noise = int(np.round(np.float32(length) * np.float32(self.noise_density)))
    noise = min(max(noise, 1), length - 1)
    spans = np.float32(noise) / np.float32(self.mean_noise_span_length)
    spans = min(max(int(np.round(spans)), 1), noise, length - noise + 1)
    return length - noise + spans, noise + spans

  def corrupt(
      self, dataset: tf.data.Dataset, output_features
  ) -> tf.data.Dataset:
    """Makes inputs and targets out of the tokens in `targets`.

    "colour" may become inputs "co<383>r" and targets "<383>lou". A training
    row is corrupted anew in each epoch; a row with a nonnegative `noise_seed`
    is always corrupted in the same way. Example shapes: `inputs`, `targets`
    <int32>[length].
    """
    vocab_size = output_features['targets'].vocabulary.vocab_size

    @seqio.map_over_dataset(num_seeds=1)
    def corrupt(example, seed):
      tokens = example['targets']
      fixed = example[NOISE_SEED]
      seed = tf.where(fixed < 0, tf.cast(seed, tf.int32), tf.stack([fixed, 0]))
      mask = self.noise_mask(tf.size(tokens), seed)
      inputs, targets = _replace_spans(tokens, mask, vocab_size)
      return {'inputs': inputs, 'targets': targets}

    return corrupt(dataset)
