# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What scores over seeds show: intervals, tests, and what they could show.

The tests are those of scipy and statsmodels; this module says which of them
answers which question. Scores are not paired by seed: in the studies of this
repository a seed that helps one method does not help another.
"""

from collections.abc import Sequence
import dataclasses
import math
import statistics

import numpy as np

from moe_peft.data import packages
from moe_peft.evaluation import spread

# Draws of a permutation test, which are the same every time.
_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
  """A difference of two means over seeds.

  Attributes:
    value: The first mean minus the second.
    low: Lower end of its interval, by Welch.
    high: Upper end.
    p: Two-sided, by Welch's t-test.
    p_permutation: Two-sided, by permuting which score is whose.

  All are NaN where a score is.
  """

  value: float
  low: float
  high: float
  p: float
  p_permutation: float


def difference(
    values: Sequence[float],
    reference: Sequence[float],
    level: float = spread.LEVEL,
) -> Difference:
  """Compares two means over two or more seeds each.

  Args:
    values: A score for each seed.
    reference: The same of another method.
    level: One minus the confidence of the interval.
  """
  from scipy import stats

  value = statistics.fmean(values) - statistics.fmean(reference)
  if not math.isfinite(value):  # No permuted difference would be as large.
    return Difference(*[math.nan] * 5)
  permuted = stats.permutation_test(
      (values, reference),
      lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis),
      permutation_type='independent', vectorized=True, n_resamples=_DRAWS,
      rng=np.random.default_rng(0),
  ).pvalue
  if not (spread.deviation(values) or spread.deviation(reference)):
    # Without any spread there is no doubt either.
    p = float(value == 0)
    return Difference(value, value, value, p, float(permuted))
  welch = stats.ttest_ind(values, reference, equal_var=False)
  low, high = welch.confidence_interval(1 - level)
  return Difference(
      value, float(low), float(high), float(welch.pvalue), float(permuted)
  )


def equivalence(
    values: Sequence[float], reference: Sequence[float], margin: float
) -> float:
  """p that two means differ by `margin` or more: two one-sided tests (TOST).

  Args:
    values: A score for each of two or more seeds.
    reference: The same of another method.
    margin: The least difference that would matter, in points.
  """
  weightstats = packages.import_optional(
      'statsmodels.stats.weightstats', 'study'
  )
  if not (spread.deviation(values) or spread.deviation(reference)):
    gap = abs(statistics.fmean(values) - statistics.fmean(reference))
    return float(gap >= margin)
  p, *_ = weightstats.ttost_ind(
      np.asarray(values), np.asarray(reference), -margin, margin,
      usevar='unequal',
  )
  return float(p)


def holm(p: Sequence[float]) -> list[float]:
  """p corrected for all tests of a family (Holm's step-down method)."""
  if not p:
    return []
  multitest = packages.import_optional('statsmodels.stats.multitest', 'study')
  return [float(x) for x in multitest.multipletests(p, method='holm')[1]]


def detectable(
    seeds: int, deviation: float, level: float = spread.LEVEL
) -> float:
  """The difference that as many seeds an arm see with a power of 80 %.

  Args:
    seeds: Two or more, of each of both arms.
    deviation: Standard deviation over seeds, in points.
    level: Level of the two-sided t-test.
  """
  power = packages.import_optional('statsmodels.stats.power', 'study')
  return deviation * float(power.TTestIndPower().solve_power(
      nobs1=seeds, alpha=level, power=0.8
  ))


def correlation(values: Sequence[float], others: Sequence[float]) -> float:
  """Spearman's rank correlation; NaN where one side has no order."""
  from scipy import stats

  if min(len(set(values)), len(set(others))) < 2:
    return float('nan')
  return float(stats.spearmanr(values, others).statistic)
