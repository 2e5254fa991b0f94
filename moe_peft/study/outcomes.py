# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Outcomes: what the seeds of a study say of its claim.

Each contrast of a claim is tested, corrected for the family of all, and is
reproduced, contradicted or undecided.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import statistics

from moe_peft.study import claims
from moe_peft.study import intervals
from moe_peft.study import records
from moe_peft.study import significance


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a contrast ended.

  Attributes:
    contrast: The contrast.
    outcome: 'reproduced', 'contradicted' or 'undecided'.
    seeds: Seeds of both arms.
    wanted: Seeds that both arms have when they are complete.
    difference: First minus second, with its interval, or None with too few.
    p: The p-value of the difference, or of the equivalence, corrected for the
      family; 1 where there is no test yet.
    size: Trained parameters of the first arm, as a ratio to the second's.
    interval: Interval of the difference from seeds and rows together; None
      where the runs do not say which rows were right. It decides nothing: the
      tests, as they were declared, are over seeds.
  """

  contrast: claims.Contrast
  outcome: str
  seeds: tuple[int, int]
  wanted: tuple[int, int]
  difference: significance.Difference | None = None
  p: float = math.nan
  size: float = math.nan
  interval: tuple[float, float] | None = None


def ended_early(
    claim: claims.Claim,
    rows: Sequence[records.Row],
    seeds: Mapping[str, Sequence[int]],
) -> dict[claims.Contrast, significance.Difference]:
  """Contrasts that end at the early look, by the first seeds alone.

  Args:
    claim: The claim.
    rows: Rows of its arms; there is no look until all have their first seeds.
    seeds: The seeds of each arm.
  """
  if claim.look is None:
    return {}
  number, level = claim.look
  scores = {
      arm: _scores(claim, rows, arm, sorted(seeds[arm])[:number])
      for arm in claim.arms
  }
  if min(map(len, scores.values())) < number:
    return {}
  found = {}
  for contrast in claim.contrasts:
    d = significance.difference(
        scores[contrast.first], scores[contrast.second], level
    )
    if d.p_permutation < level or max(abs(d.low), abs(d.high)) < claim.gain:
      found[contrast] = d
  return found


def judge(
    claim: claims.Claim,
    rows: Sequence[records.Row],
    seeds: Mapping[str, Sequence[int]],
) -> list[Outcome]:
  """The outcome of each contrast.

  Args:
    claim: The claim.
    rows: Rows of its arms.
    seeds: The seeds of each arm; rows of others do not count. Before all of
      them are there, or the early look has ended a contrast, it is undecided,
      whatever it looks like.
  """
  ended = ended_early(claim, rows, seeds)
  of = {c: _judged(claim, rows, seeds, c, c in ended) for c in claim.contrasts}
  scores = {
      c: [_scores(claim, of[c], arm, seeds[arm]) for arm in (c.first, c.second)]
      for c in claim.contrasts
  }
  differences = {
      c: significance.difference(*scores[c], claim.level)
      for c in claim.contrasts if min(map(len, scores[c])) >= 2
  }
  # The family is all contrasts, those that have no test yet included.
  corrected = significance.holm([
      _p(claim, c, scores[c], differences[c]) if c in differences else 1.0
      for c in claim.contrasts
  ])
  outcomes = []
  for c, p in zip(claim.contrasts, corrected, strict=True):
    counts = len(scores[c][0]), len(scores[c][1])
    wanted = len(seeds[c.first]), len(seeds[c.second])
    d = differences.get(c)
    over = c in ended or (counts[0] >= wanted[0] and counts[1] >= wanted[1])
    outcome = _outcome(claim, c, d, p) if over and d else 'undecided'
    outcomes.append(
        Outcome(
            c, outcome, counts, wanted, d, p, _size(rows, c),
            _interval(claim, of[c], c),
        )
    )
  return outcomes


def of_claim(claim: claims.Claim, outcomes: Sequence[Outcome]) -> str:
  """The outcome of the whole claim."""
  found = [o.outcome for o in outcomes]
  # The outcome that one contrast decides, and the one that all must have.
  one, all_ = ('contradicted', 'reproduced')[:: 1 if claim.every else -1]
  if one in found:
    return one
  return all_ if set(found) == {all_} else 'undecided'


def _p(claim, contrast, scores, difference) -> float:
  if contrast.kind == 'better':
    return difference.p
  return significance.equivalence(*scores, claim.margin)


def _outcome(claim, contrast, d, p) -> str:
  if contrast.kind == 'better':
    if p < claim.level and d.value >= claim.gain:
      return 'reproduced'
    worse = p < claim.level and d.value < 0
    return 'contradicted' if d.high < claim.gain or worse else 'undecided'
  if p < claim.level:
    return 'reproduced'
  worse = d.p < claim.level and d.value <= -claim.gain
  return 'contradicted' if worse else 'undecided'


def _judged(claim, rows, seeds, contrast, ended: bool) -> list[records.Row]:
  """The rows that a contrast is judged by, those of its declared seeds.

  What ended at the early look stays as it was then, also if another contrast
  or claim has trained more seeds of one arm; with all seeds of both, all count.
  """
  wanted = {
      (arm, seed) for arm in (contrast.first, contrast.second)
      for seed in seeds[arm]
  }
  if ended and not wanted <= {(row['name'], row['seed']) for row in rows}:
    wanted = {
        (arm, seed) for arm in (contrast.first, contrast.second)
        for seed in sorted(seeds[arm])[: claim.look[0]]
    }
  return [row for row in rows if (row['name'], row['seed']) in wanted]


def _scores(claim, rows, arm, seeds: Sequence[int]) -> list[float]:
  """Means of an arm, of those of the seeds that are there, in their order."""
  of_seed = {row['seed']: row for row in rows if row['name'] == arm}
  return [
      claims.mean(claim.left_out)(of_seed[seed])
      for seed in sorted(seeds) if seed in of_seed
  ]


def _interval(claim, rows, contrast) -> tuple[float, float] | None:
  return intervals.difference(*(
      intervals.scores([r for r in rows if r['name'] == arm], claim.left_out)
      for arm in (contrast.first, contrast.second)
  ))


def _size(rows, contrast) -> float:
  """The ratio of trained parameters, of the first arm to the second.

  All seeds of an arm train the same number.
  """
  sizes = [
      [row['trainable'] for row in rows if row['name'] == arm]
      for arm in (contrast.first, contrast.second)
  ]
  if not all(sizes):
    return math.nan
  return statistics.median(sizes[0]) / statistics.median(sizes[1])
