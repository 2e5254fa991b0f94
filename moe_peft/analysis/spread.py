# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one rule by which tables call a difference real (ours)."""

from collections.abc import Sequence
import statistics


def exceeds(values: Sequence[float], reference: Sequence[float]) -> bool:
  """Whether means differ by more than the sum of both standard deviations.

  One run has no spread, so nothing can be said of it.

  Args:
    values: A score for each seed.
    reference: The same of another method.
  """
  if min(len(values), len(reference)) < 2:
    return False
  gap = abs(statistics.fmean(values) - statistics.fmean(reference))
  return gap > statistics.stdev(values) + statistics.stdev(reference)
