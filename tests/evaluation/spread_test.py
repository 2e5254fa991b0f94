# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the rule by which a difference counts."""

from moe_peft.evaluation import spread


def test_the_rule_of_a_difference():
  # Two of each, variances 2: |t| = gap / sqrt(2), beyond 4.303 from 6.085 on.
  assert spread.differ([67, 69], [60, 62])
  assert not spread.differ([66, 68], [60, 62])
  assert spread.differ([60, 62], [67, 69])
  assert not spread.differ([70], [60, 62])  # One run has no spread.
  # Seeds that agree to the last digit.
  assert spread.differ([1.0, 1.0], [2.0, 2.0])
  assert not spread.differ([1.0, 1.0], [1.0, 1.0])
