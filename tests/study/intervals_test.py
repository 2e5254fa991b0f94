# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Intervals from seeds and rows hold what they promise, on known truths."""

import numpy as np
import pytest
from scipy import stats

from moe_peft.runs import row_scores
from moe_peft.study import claims
from moe_peft.study import intervals
from moe_peft.study import outcomes as outcomes_lib
from moe_peft.study import verdicts

TASKS, ROWS = 2, 100


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def arms(rng, seeds, of_seeds, of_rows, gap=0.5):
  """Scores of two arms; the second one is better, on some rows more."""
  found = {}, {}
  effects = [rng.normal(0, of_seeds, (seeds, 1)) for _ in found]
  for task in range(TASKS):
    ease, more = rng.normal(0, 1, ROWS), gap + rng.normal(0, of_rows, ROWS)
    for arm, effect in zip((0, 1), effects, strict=True):
      chances = sigmoid(ease + arm * more + effect)
      found[arm][str(task)] = (rng.random(chances.shape) < chances) * 1.0
  return found


def truth(rng, of_seeds, of_rows, gap=0.5, draws=400_000):
  ease, more = rng.normal(0, 1, draws), gap + rng.normal(0, of_rows, draws)
  effects = rng.normal(0, of_seeds, (2, draws))
  base, better = sigmoid(ease + effects[0]), sigmoid(ease + more + effects[1])
  return 100 * (better - base).mean()


def bootstrap(first, second, rng, draws=2000):
  """Resamples seeds of both arms and the rows that they share."""
  pick = lambda number: rng.multinomial(
      number, np.full(number, 1 / number), draws
  ) / number
  seeds = [pick(len(arm['0'])) for arm in (first, second)]
  total = sum(
      ((seeds[0] @ first[task] - seeds[1] @ second[task]) * pick(ROWS)).sum(1)
      for task in first
  )
  return 100 * np.quantile(total / TASKS, (0.025, 0.975))


@pytest.mark.parametrize(
    ('of_seeds', 'of_rows'), [(0.05, 4.0), (0.3, 0.0), (0.2, 1.0)]
)
def test_nineteen_of_twenty_intervals_hold_the_truth(of_seeds, of_rows):
  """With five seeds; Welch's alone, where rows matter, holds it less often."""
  rng = np.random.default_rng(0)
  true, hits, welch = truth(rng, of_seeds, of_rows), [], []
  for _ in range(200):
    base, better = arms(rng, 5, of_seeds, of_rows)
    low, high = intervals.difference(better, base)
    hits.append(low <= true <= high)
    means = [
        100 * np.mean([x.mean(1) for x in arm.values()], axis=0)
        for arm in (better, base)
    ]
    low, high = stats.ttest_ind(
        *means, equal_var=False
    ).confidence_interval(0.95)
    welch.append(low <= true <= high)
  assert 0.92 < np.mean(hits) < 0.99
  if of_rows == 4.0:
    assert np.mean(welch) < 0.85


def test_a_bootstrap_of_many_seeds_is_hardly_wider():
  rng = np.random.default_rng(1)
  base, better = arms(rng, 60, 0.2, 1.0)
  ours = intervals.difference(better, base)
  theirs = bootstrap(better, base, rng)
  assert np.mean(theirs) == pytest.approx(np.mean(ours), abs=0.2)
  assert 1.0 < np.ptp(theirs) / np.ptp(ours) < 1.15


def test_the_part_of_the_rows_is_unbiased():
  """Of few rows, where seeds move all of them together."""
  rng = np.random.default_rng(4)
  shape, truth = (20_000, 3, 5), 0.25  # Draws, seeds, rows.
  arms_of = []
  for scale in (0.0, truth**0.5):
    of_seeds, of_rows, answers = (
        rng.normal(0, 1, size)
        for size in ((*shape[:2], 1), (shape[0], 1, shape[2]), shape)
    )
    arms_of.append(2 * of_seeds + scale * of_rows + 0.5 * answers)
  found = [intervals.rows_variance(*x) for x in zip(*arms_of, strict=True)]
  assert np.mean(found) == pytest.approx(truth, abs=0.01)


def test_rows_are_kept_in_a_quarter_of_their_number():
  for scores in ([0, 0, 1], [1.0, 0.0] * 200, [True], [0] * 9):
    packed = row_scores.pack(scores)
    assert len(packed) <= len(scores) / 4 + 1
    np.testing.assert_array_equal(row_scores.unpack(packed), scores)
  assert row_scores.pack([0.5, 1.0]) == row_scores.pack([]) == ''
  for text in ('', '1', 'x', '-1', '0x1f'):
    with pytest.raises(ValueError, match='holds no rows'):
      row_scores.unpack(text)


def rows(name, scores, **changes):
  return [
      {'name': name, 'seed': seed, 'trainable': 1, 'held_out': ['u'],
       'adapted': {'t': 100 * np.mean(of_seed), 'u': 0.0, 'v': 1.0},
       'rows': {'t': row_scores.pack(of_seed)}, **changes}
      for seed, of_seed in enumerate(scores)
  ]  # fmt: skip


def test_they_are_of_the_tasks_that_count_or_there_are_none():
  rng = np.random.default_rng(2)
  scores = (rng.random((3, 50)) < 0.5) * 1.0
  found = intervals.scores(rows('a', scores), ('v',))
  np.testing.assert_array_equal(found['t'], scores)
  # Of v nothing is known, of older runs neither, nor of other rows.
  assert intervals.scores(rows('a', scores)) is None
  assert intervals.scores(rows('a', scores, rows={}), ('v',)) is None
  assert intervals.scores([], ('v',)) is None
  fewer = {'t': scores[:, :40]}
  for other in (None, {}, {'u': scores}, fewer, {'t': scores[:1]}):
    assert intervals.difference(found, other) is None
  same = {'t': np.ones((3, 9))}
  assert intervals.difference(same, same) == (0.0, 0.0)


@pytest.mark.slow
def test_claims_print_them_and_decide_by_seeds():
  rng = np.random.default_rng(3)
  both = [(rng.random((4, 200)) < chance) * 1.0 for chance in (0.3, 0.6)]
  first, second = (rows(n, x) for n, x in zip('ab', both, strict=True))
  contrast = claims.Contrast('better', 'b', 'a')
  claim = claims.Claim('A claim.', 'a paper', (contrast,), left_out=('v',))
  seeds = dict.fromkeys('ab', range(4))
  (found,) = outcomes_lib.judge(claim, first + second, seeds)
  low, high = found.interval
  assert low < found.difference.value < high
  text = verdicts.table([verdicts.Verdict('c', claim, [found], seeds)])
  assert f'{low:+.1f} to {high:+.1f}' in text and 'seeds and rows' in text
  bare = [{**row, 'rows': {}} for row in first + second]
  (older,) = outcomes_lib.judge(claim, bare, seeds)
  assert (older.outcome, older.p) == (found.outcome, found.p)
  assert older.interval is None
