# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one rule by which tables call two means significantly different."""

from collections.abc import Sequence
import math
import statistics

LEVEL = 0.05


def deviation(values: Sequence[float]) -> float:
  """Standard deviation of two or more values; NaN where one is not finite."""
  if not all(map(math.isfinite, values)):
    return math.nan
  return statistics.stdev(values)


def differ(values: Sequence[float], reference: Sequence[float]) -> bool:
  """Whether two means over seeds are significantly different.

  By Welch's t-test, p < 0.05. Of many comparisons some are false. One run has
  no spread, so nothing can be said of it. Where all runs of either side are
  equal there is no spread either: then means differ if they are not the same.

  Args:
    values: A score for each seed.
    reference: The same of another method.
  """
  if min(len(values), len(reference)) < 2:
    return False
  if not (deviation(values) or deviation(reference)):
    return statistics.fmean(values) != statistics.fmean(reference)
  from scipy import stats  # Half a second that reports of one run need not pay.

  test = stats.ttest_ind(values, reference, equal_var=False)
  return bool(test.pvalue < LEVEL)
