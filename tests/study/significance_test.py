# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the statistics of studies, against answers that are known."""

import math

import numpy as np
import pytest

from moe_peft.study import significance

A = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9]
B = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]


def test_welch_by_its_formula():
  mean = lambda x: sum(x) / len(x)
  error = lambda x: sum((v - mean(x)) ** 2 for v in x) / (len(x) - 1) / len(x)
  found = significance.difference(A, B)
  assert found.value == pytest.approx(mean(A) - mean(B))
  # t = d / sqrt(error(A) + error(B)); the interval is symmetric about d.
  half = found.high - found.value
  assert found.value - found.low == pytest.approx(half)
  degrees = (error(A) + error(B)) ** 2 / (
      error(A) ** 2 / 5 + error(B) ** 2 / 5
  )
  assert 7 < degrees < 8.5
  # t's 97.5 % quantile is 2.365 at 7 degrees of freedom, 2.306 at 8.
  assert 2.29 < half / math.sqrt(error(A) + error(B)) < 2.37


def test_permutations_of_three_and_three_are_counted():
  """All of one above all of the other: 2 of 20 orders are as extreme."""
  found = significance.difference([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
  assert found.p_permutation == pytest.approx(0.1)


def test_holm_by_hand():
  # 0.01 x 3, then 0.02 x 2, then 0.04, never below the one before.
  assert significance.holm([0.04, 0.01, 0.02]) == pytest.approx(
      [0.04, 0.03, 0.04]
  )
  assert significance.holm([]) == []


def test_equal_means_are_equivalent_if_the_spread_is_small():
  rng = np.random.default_rng(0)
  near = rng.normal(0, 1.27, (2, 24))
  near -= near.mean(axis=1, keepdims=True)
  assert significance.equivalence(*near, 1.5) < 0.01
  assert significance.equivalence(near[0], near[1] + 1.5, 1.5) > 0.4
  few = near[:, :3] - near[:, :3].mean(axis=1, keepdims=True)
  assert significance.equivalence(*few, 0.1) > 0.05


@pytest.mark.parametrize(
    ('seeds', 'deviation', 'points'),
    # By the noncentral t: 27 seeds for one point at 1.27, 48 at 1.73, 7 for
    # three points.
    [(27, 1.27, 1.0), (48, 1.73, 1.0), (7, 1.73, 3.0), (8, 1.27, 2.0)],
)
def test_seeds_and_what_they_see(seeds, deviation, points):
  assert significance.detectable(seeds, deviation) <= points
  assert significance.detectable(seeds - 1, deviation) > points


def test_scores_without_a_spread():
  same = significance.difference([2.0, 2.0], [2.0, 2.0])
  assert (same.value, same.p) == (0.0, 1.0)
  other = significance.difference([3.0, 3.0], [2.0, 2.0])
  assert (other.low, other.high, other.p) == (1.0, 1.0, 0.0)
  assert significance.equivalence([3.0, 3.0], [2.0, 2.0], 1.5) == 0.0
  assert significance.equivalence([5.0, 5.0], [2.0, 2.0], 1.5) == 1.0


def test_rank_correlation():
  assert significance.correlation([1, 2, 3], [10, 20, 90]) == 1.0
  assert significance.correlation([1, 2, 3], [9, 5, 1]) == -1.0
  assert math.isnan(significance.correlation([1, 1], [2, 3]))
