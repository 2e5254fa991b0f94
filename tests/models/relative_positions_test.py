# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Closed forms of T5's attention bias."""

import jax
import numpy as np
import pytest

from moe_peft.models import relative_positions


def test_relative_position_bucket_closed_form():
  # 32 buckets, one direction: 0..15 exact, 16 + floor(16 * log_8(n / 16)).
  got = relative_positions.relative_position_bucket(
      -np.array([0, 1, 15, 16, 17, 32, 64, 113, 127, 128, 5000, -3]),
      False, 32, 128,
  )
  # 16 * log_8(2) = 5.33; log_8(4): 10.67; log_8(113 / 16): 15.04.
  assert got.tolist() == [0, 1, 15, 16, 16, 21, 26, 31, 31, 31, 31, 0]
  # Both directions: 16 buckets each, the keys after the query from 16 on;
  # 8 + floor(8 * log_16(n / 8)), where log_16(16 / 8) = 1 / 4 exactly.
  got = relative_positions.relative_position_bucket(
      np.array([0, -7, -8, -16, -32, -128, 1, 7, 8, 16, 200]), True, 32, 128
  )
  assert got.tolist() == [0, 7, 8, 10, 12, 15, 17, 23, 24, 26, 31]


@pytest.mark.parametrize('length', [1, 7, 300])
@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('sizes', [(32, 128), (8, 5), (4, 1000)])
def test_the_bias_is_that_of_each_pair(length, bidirectional, sizes):
  """Bit for bit, though nothing of [length, length] is made while tracing."""
  module = relative_positions.RelativePositionBiases(2, *sizes)
  variables = module.init(jax.random.key(0), length, bidirectional)
  table = np.asarray(variables['params']['rel_embedding'])
  positions = np.arange(length)
  buckets = relative_positions.relative_position_bucket(
      positions[None, :] - positions[:, None], bidirectional, *sizes
  )
  np.testing.assert_array_equal(
      module.apply(variables, length, bidirectional)[0], table[:, buckets]
  )


def test_relative_position_bias_depends_on_distance_only():
  module = relative_positions.RelativePositionBiases(num_heads=2)
  variables = module.init(jax.random.key(0), 6, True)
  bias = np.asarray(module.apply(variables, 6, True))
  assert bias.shape == (1, 2, 6, 6)
  np.testing.assert_array_equal(bias[..., 1:, 1:], bias[..., :-1, :-1])
  table = np.asarray(variables['params']['rel_embedding'])
  np.testing.assert_array_equal(bias[0, :, 3, 1], table[:, 2])
  np.testing.assert_array_equal(bias[0, :, 1, 3], table[:, 16 + 2])
