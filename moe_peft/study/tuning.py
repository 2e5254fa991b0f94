# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How values are chosen: which trials are tried next, and which one wins.

Without TUNING_SEEDS, every combination of TUNE is tried once with the first
seed of the table. With them, tuning has seeds of its own, which no table
counts; RUNGS says how many trials go on to longer runs or more seeds
(successive halving); and a winner at the edge of its grid is not taken before
the next value beyond has been tried.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import statistics
from typing import Any

from moe_peft import errors
from moe_peft import gin_rules
from moe_peft.study import records as records_lib
from moe_peft.study import significance

Values = records_lib.Values
# Values beyond each edge; a best one still further out is the table's to say.
_MOST_BEYOND = 4
# Below this rank correlation short runs are no guide to long ones.
LEAST_AGREEMENT = 0.7


@dataclasses.dataclass(frozen=True)
class Rung:
  """One round of tuning.

  Attributes:
    steps: TRAIN_STEPS of its runs; None for those of the file.
    seeds: How many of the tuning seeds it uses.
    trials: How many trials come so far; None for all.
  """

  steps: int | None = None
  seeds: int = 1
  trials: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a file is tuned.

  Attributes:
    seeds: Tuning seeds; empty if the table's first one tunes.
    rungs: The rounds, one after the other; the last one decides.
  """

  seeds: tuple[int, ...] = ()
  rungs: tuple[Rung, ...] = (Rung(),)


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of tuning; `seed` is None for the table's first one."""

  values: Values
  steps: int | None
  seed: int | None


def read(
    file: Path, macros: Mapping[str, Any], seeds: Sequence[int], trials: int = 1
) -> Plan:
  """The plan of a gin file.

  Args:
    file: The file, which messages name.
    macros: Macros of the file: TUNING_SEEDS, RUNGS and TRAIN_STEPS.
    seeds: Seeds that the table counts.
    trials: How many values there are to choose from.

  Raises:
    errors.UserError: For seeds that the table counts too or that are there
      twice, or wrong rungs.
  """
  if not (own := macros.get('TUNING_SEEDS')):
    return Plan()
  if not _whole(own) or set(own) & set(seeds) or len(set(own)) < len(own):
    raise errors.UserError(
        f'{file} sets TUNING_SEEDS to {own!r}.', 'TUNING_SEEDS',
        'Give whole numbers, each of them once, that are none of its '
        f'SEEDS = {tuple(seeds)}.',
    )
  rungs = macros.get('RUNGS')
  if rungs is None:
    return Plan(tuple(own), (Rung(macros.get('TRAIN_STEPS'), len(own)),))
  if not _are_rungs(rungs, len(own)):
    raise errors.UserError(
        f'{file} sets RUNGS to {rungs!r}.', 'RUNGS',
        'Give (steps, seeds, trials) of each, as ((100, 1, 10), (300, 1, 5), '
        f'(300, 3, 3)), with at most {len(own)} seeds.',
    )
  if rungs[0][2] < trials:
    raise errors.UserError(
        f'{file} has {trials} trials, and its first round {rungs[0][2]}.',
        'RUNGS', 'The first round tries all of them.',
    )
  return Plan(tuple(own), tuple(Rung(*rung) for rung in rungs))


def _are_rungs(rungs: Any, num_seeds: int) -> bool:
  """Whether it is a list of (steps, seeds, trials), none of them 0."""
  return bool(rungs) and isinstance(rungs, (tuple, list)) and all(
      isinstance(r, (tuple, list)) and len(r) == 3 and _whole(r)
      and 1 <= r[1] <= num_seeds and r[0] and r[2] for r in rungs
  )


def _whole(values: Any) -> bool:
  return isinstance(values, (tuple, list)) and all(
      isinstance(value, int) and value >= 0 for value in values
  )


class Tuner:
  """The tuning of one gin file, as far as records know it."""

  def __init__(
      self,
      name: str,
      grid: Sequence[Values],
      plan: Plan,
      records: records_lib.Records,
  ):
    self._name, self._grid, self._plan = name, list(grid), plan
    self._records = records

  def missing(self) -> list[Trial]:
    """Trials to run now; empty once a winner is known."""
    if len(self._grid) == 1:
      return []
    candidates, tried = self._grid, list(self._grid)
    for number, rung in enumerate(self._plan.rungs):
      candidates = candidates[: rung.trials]
      if missing := self._missing(candidates, rung):
        return missing
      if number == len(self._plan.rungs) - 1 and self._plan.seeds:
        candidates, missing = self._widen(candidates, tried, rung)
        if missing:
          return missing
      candidates = self._ranked(candidates, rung)
    return []

  def best(self) -> Values:
    """The winner, the first of equals; `missing` must be empty."""
    if len(self._grid) == 1:
      return self._grid[0]
    return self._ranked(self._finalists(), self._plan.rungs[-1])[0]

  def at_edge(self) -> list[str]:
    """Macros of which the winner is the least or greatest that was tried."""
    if len(self._grid) == 1:
      return []
    tried = self._grid + self._finalists()
    return list(_beyond(self.best(), tried))

  def agreement(self) -> float:
    """Rank correlation of the first two rungs; NaN without two of them.

    Below LEAST_AGREEMENT the first rung chooses among the wrong trials.
    """
    if len(self._plan.rungs) < 2:
      return math.nan
    first, second = self._plan.rungs[:2]
    both = self._ranked(self._grid[: first.trials], first)[: second.trials]
    return significance.correlation(
        *([self._score(v, rung) for v in both] for rung in (first, second))
    )

  def _finalists(self) -> list[Values]:
    """Values of the last rung, with those tried beyond the grid's edges."""
    candidates = self._grid
    for rung in self._plan.rungs[:-1]:
      candidates = self._ranked(candidates[: rung.trials], rung)
    last = self._plan.rungs[-1]
    candidates = candidates[: last.trials]
    if not self._plan.seeds:
      return candidates
    return self._widen(candidates, list(self._grid), last)[0]

  def _widen(self, candidates, tried, rung):
    """Adds values beyond the edges while the best lies on one.

    Returns:
      All candidates, and the trials that are missing to know more.
    """
    for _ in range(_MOST_BEYOND):
      best = self._ranked(candidates, rung)[0]
      new = [v for v in _beyond(best, tried).values() if v not in tried]
      if not new:
        break
      candidates, tried = candidates + new, tried + new
      if missing := self._missing(new, rung):
        return candidates, missing
    return candidates, []

  def _missing(self, candidates, rung) -> list[Trial]:
    return [
        Trial(values, rung.steps, seed)
        for values in candidates
        for seed in self._seeds(rung)
        if self._records.trial(self._name, values, rung.steps, seed) is None
    ]

  def _seeds(self, rung) -> Sequence[int | None]:
    return self._plan.seeds[: rung.seeds] or (None,)

  def _score(self, values, rung) -> float:
    """Mean over the tuning seeds; a run that is not finite is the worst."""
    score = statistics.fmean(
        self._records.trial(self._name, values, rung.steps, seed)['validation']
        for seed in self._seeds(rung)
    )
    return score if math.isfinite(score) else -math.inf

  def _ranked(self, candidates, rung) -> list[Values]:
    return sorted(
        candidates, key=lambda values: self._score(values, rung), reverse=True
    )


def _beyond(best: Values, tried: Sequence[Values]) -> dict[str, Values]:
  """The next value beyond each edge that the best lies on, by macro.

  Steps are those of the grid there, as ratios, or the nearest whole number for
  a macro that takes no other. Macros with a single value, or whose values are
  no positive numbers, have no edge; nor has one that goes no further.
  """
  found = {}
  for macro, text in best.items():
    try:
      known = sorted({float(values[macro]) for values in tried})
    except ValueError:
      continue
    if len(known) < 2 or known[0] <= 0:
      continue
    for edge, inner in ((known[0], known[1]), (known[-1], known[-2])):
      beyond = edge * edge / inner
      rule = gin_rules.RULES.get(macro, lambda value: '')
      allowed = [
          value for value in (f'{beyond:.3g}', f'{beyond:.0f}')
          if not rule(ast.literal_eval(value))
      ]
      if float(text) == edge and allowed:
        found[macro] = {**best, macro: allowed[0]}
  return found
