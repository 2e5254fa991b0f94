# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of evaluations: whole ones in order, short ones by length."""

import numpy as np
import tensorflow as tf

from moe_peft.evaluation import batches

LENGTHS = (40, 3, 10)


def dataset():
  """Three enumerated examples of a decoder, of different lengths."""
  rows = np.array([[1] * n + [0] * (64 - n) for n in LENGTHS], np.int32)
  features = {'decoder_target_tokens': rows, 'number': np.arange(3)}
  return tf.data.Dataset.from_tensor_slices(features).enumerate()


def test_whole_batches_are_in_order_and_filled_up():
  (first, second) = batches.whole(dataset(), 2)
  assert first[0] == [0, 1] and second[0] == [2]
  tokens = second[1]['decoder_target_tokens']
  assert tokens.shape == (2, 64) and not tokens[1].any()
  assert list(second[1]) == ['decoder_target_tokens']  # Scalars are left out.


def test_short_batches_are_of_like_length_and_lose_padding_alone():
  (first, second) = batches.short(dataset(), 2)
  assert first[0] == [1, 2] and second[0] == [0]
  # Lengths are multiples of 32.
  for (_, batch), length, tokens in ((first, 32, 13), (second, 64, 40)):
    found = batch['decoder_target_tokens']
    assert found.shape == (2, length) and found.sum() == tokens
