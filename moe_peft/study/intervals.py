# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Intervals of a difference from seeds and rows together.

Another seed would give another score, and so would other questions of the same
kind. A test over seeds knows of the first alone: it says what holds on these
rows. Here the variance of the rows is added to Welch's. Both arms answer the
same rows, so it is that of the differences of a row, without what seeds add to
it, which Welch counts already. Degrees of freedom are Satterthwaite's.

A bootstrap over both counts the chance of single answers twice, which makes it
a tenth wider (tests/study/intervals_test.py).
"""

from collections.abc import Container, Mapping, Sequence
import math

import numpy as np

from moe_peft.evaluation import spread
from moe_peft.runs import row_scores
from moe_peft.study import records as records_lib

# <float>[num_seeds, num_rows] by task, of scores from 0 to 1.
Scores = Mapping[str, np.ndarray]


def scores(
    rows: Sequence[records_lib.Row], left_out: Container[str] = ()
) -> Scores | None:
  """The scores of all rows of an arm, on the tasks that it was trained on.

  Args:
    rows: The arm's runs.
    left_out: Tasks that do not count.

  Returns:
    None if some run does not say them, as of metrics that are no matter of
    right or wrong, and of older runs.
  """
  found = {}
  for task in rows[0]['adapted'] if rows else ():
    if task in rows[0]['held_out'] or task in left_out:
      continue
    texts = [row.get('rows', {}).get(task) for row in rows]
    if None in texts:
      return None
    of_task = [row_scores.unpack(text) for text in texts]
    if len(set(map(len, of_task))) > 1:
      return None
    found[task] = np.stack(of_task)
  return found or None


def difference(
    first: Scores | None, second: Scores | None, level: float = spread.LEVEL
) -> tuple[float, float] | None:
  """The interval of the difference of two means over tasks, in points.

  Args:
    first: Scores of two or more seeds.
    second: Scores of another arm, on the same rows.
    level: One minus the confidence.

  Returns:
    Its ends; None where either side is unknown, has one seed, or other rows.
  """
  from scipy import stats

  if not first or not second or first.keys() != second.keys() or any(
      len(side[task]) < 2 or side[task].shape[1] != first[task].shape[1]
      for side in (first, second) for task in first
  ):
    return None
  value, parts = 0.0, []  # Variances with their degrees of freedom.
  for sign, side in ((1, first), (-1, second)):
    means = np.mean([x.mean(1) for x in side.values()], axis=0)
    value += sign * means.mean()
    parts.append((means.var(ddof=1) / len(means), len(means) - 1))
  for task, x in first.items():
    y, num_rows = second[task], x.shape[1]
    if num_rows > 1:
      of_rows = max(rows_variance(x, y), 0.0)
      parts.append((of_rows / num_rows / len(first) ** 2, num_rows - 1))
  variance = sum(v for v, _ in parts)
  if not variance:
    return 100 * value, 100 * value
  freedom = variance**2 / sum(v**2 / n for v, n in parts)
  half = stats.t.ppf(1 - level / 2, freedom) * math.sqrt(variance)
  return 100 * float(value - half), 100 * float(value + half)


def rows_variance(x: np.ndarray, y: np.ndarray) -> float:
  """The variance over rows of the difference of two arms with endless seeds.

  The estimate is unbiased, so it may be negative. It is the variance of the
  differences of means without what single answers add to it, the mean square
  of the interaction of seeds and rows. What a seed adds to all of its rows does
  not count.

  Args:
    x: Scores, <float>[num_seeds, num_rows], of two or more each.
    y: Scores of the other arm, on the same rows.
  """
  of_answers = 0.0
  for z in (x, y):
    num_seeds, num_rows = z.shape
    of_row = (z - z.mean(1, keepdims=True)).var(0, ddof=1)
    of_answers += of_row.sum() / (num_rows - 1) / num_seeds
  return float((x.mean(0) - y.mean(0)).var(ddof=1) - of_answers)
