# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Claims: what a study asks, written down before it runs, and its outcome.

A folder of a study may hold `claim.gin`, which is no run: it names the
contrasts that are tested, as one family, and what makes them true or false.
Whatever else the study shows is exploratory.
"""

from collections.abc import Callable, Container, Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import statistics
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.evaluation import spread
from moe_peft.study import intervals
from moe_peft.study import records
from moe_peft.study import significance

FILE = 'claim.gin'
_KINDS = ('better', 'as good')
# Macros of the file, by attribute of `Claim`; beside these it has CONTRASTS.
_FIELDS = {
    'text': 'CLAIM', 'source': 'SOURCE', 'left_out': 'LEFT_OUT',
    'gain': 'GAIN', 'margin': 'MARGIN', 'deviation': 'SEED_DEVIATION',
    'look': 'EARLY_LOOK', 'every': 'EVERY_CONTRAST', 'setting': 'SETTING',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contrast:
  """One comparison: `first` is better than, or as good as, `second`."""

  kind: str
  first: str
  second: str


@dataclasses.dataclass(frozen=True)
class Claim:
  """What `claim.gin` says.

  Attributes:
    text: The claim in a sentence.
    source: Who made it.
    contrasts: The family of tests.
    left_out: Tasks that the mean leaves out.
    gain: Points that a better arm must be ahead by.
    margin: Points within which arms are as good as each other.
    deviation: Standard deviation over seeds that is expected, in points.
    look: (seeds, p): after so many seeds an arm, a contrast whose p is below it
      ends, as does one whose interval of that level lies within the gain on
      both sides; None for no early look.
    every: Whether all contrasts must hold, or any of them.
    setting: What the outcome holds for, in a few words.
  """

  text: str
  source: str
  contrasts: tuple[Contrast, ...]
  left_out: tuple[str, ...] = ()
  gain: float = 1.0
  margin: float = 1.5
  deviation: float = 1.27
  look: tuple[int, float] | None = None
  every: bool = True
  setting: str = ''

  @property
  def level(self) -> float:
    """Of the last test; one early look at 0.001 costs next to nothing."""
    return spread.LEVEL if self.look is None else spread.LEVEL - self.look[1]

  @property
  def arms(self) -> tuple[str, ...]:
    """Names of the gin files that it compares, each of them once."""
    both = [arm for c in self.contrasts for arm in (c.first, c.second)]
    return tuple(dict.fromkeys(both))


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a contrast ended.

  Attributes:
    contrast: The contrast.
    outcome: 'reproduced', 'contradicted' or 'undecided'.
    seeds: Seeds of both arms.
    wanted: Seeds that both arms have when they are complete.
    difference: First minus second, with its interval, or None with too few.
    p: Corrected for the family: of the difference, or of the equivalence; 1
      where there is no test yet.
    size: Trained parameters of the first arm, as a ratio to the second's.
    interval: Of the difference, from seeds and rows together; None where the
      runs do not say which rows were right. It decides nothing: the tests, as
      they were declared, are over seeds.
  """

  contrast: Contrast
  outcome: str
  seeds: tuple[int, int]
  wanted: tuple[int, int]
  difference: significance.Difference | None = None
  p: float = math.nan
  size: float = math.nan
  interval: tuple[float, float] | None = None


def read(folder: Path) -> Claim | None:
  """The claim of a folder; None if it makes none.

  Raises:
    errors.UserError: For a file that cannot be read as one.
  """
  file = folder / FILE
  if not file.exists():
    return None
  gin_files.load_gin([str(file)])
  values = {name: gin_files.macro(name) for name in gin_files.macros()}
  known = {'CONTRASTS', *_FIELDS.values()}
  if unknown := set(values) - known:  # Else a default would decide, unseen.
    raise errors.UserError(
        f'{file} sets {min(unknown)}, which no claim has.', min(unknown),
        f'A claim has {", ".join(sorted(known))}.',
    )
  contrasts = values.get('CONTRASTS')
  if not _are_contrasts(contrasts):
    raise errors.UserError(
        f'{file} sets CONTRASTS to {contrasts!r}.', 'CONTRASTS',
        "Give triples, as (('better', 'molora', 'lora'),), each of "
        f'{" or ".join(map(repr, _KINDS))} and two gin files of the folder.',
    )
  for name in {arm for _, *arms in contrasts for arm in arms}:
    if not (folder / f'{name}.gin').exists():
      raise errors.UserError(
          f'{file} compares {name}, and the folder has no {name}.gin.',
          'CONTRASTS',
      )
  look = values.get('EARLY_LOOK')
  if look is not None and not _is_look(look):
    raise errors.UserError(
        f'{file} sets EARLY_LOOK to {look!r}.', 'EARLY_LOOK',
        'Give seeds and a p that is far below 0.05, as (8, 0.001), or None.',
    )
  given = {k: values[macro] for k, macro in _FIELDS.items() if macro in values}
  return Claim(
      **({'text': folder.name, 'source': ''} | given),
      contrasts=tuple(Contrast(*contrast) for contrast in contrasts),
  )


def _are_contrasts(value: Any) -> bool:
  return bool(value) and isinstance(value, (tuple, list)) and all(
      isinstance(c, (tuple, list)) and len(c) == 3 and c[0] in _KINDS
      and c[1] != c[2] for c in value
  )


def _is_look(value: Any) -> bool:
  return (
      isinstance(value, (tuple, list)) and len(value) == 2
      and isinstance(value[0], int) and value[0] >= 2
      and isinstance(value[1], float) and 0 < value[1] < spread.LEVEL
  )


def mean(left_out: Container[str]) -> Callable[[records.Row], float]:
  """The mean of a row over the tasks that were trained on, some left out."""

  def of_row(row: records.Row) -> float:
    counted = {
        task: score for task, score in row['adapted'].items()
        if task not in left_out
    }
    return records.score(row | {'adapted': counted})

  return of_row


def ended_early(
    claim: Claim, rows: Sequence[records.Row]
) -> dict[Contrast, significance.Difference]:
  """Contrasts that end at the early look, by the first seeds alone.

  Args:
    claim: The claim.
    rows: Rows of its arms; there is no look until all have enough seeds.
  """
  if claim.look is None:
    return {}
  seeds, level = claim.look
  scores = {arm: _scores(claim, rows, arm, seeds) for arm in claim.arms}
  if min(map(len, scores.values())) < seeds:
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
    claim: Claim,
    rows: Sequence[records.Row],
    seeds: Mapping[str, Sequence[int]],
) -> list[Outcome]:
  """The outcome of each contrast.

  Args:
    claim: The claim.
    rows: Rows of its arms.
    seeds: The seeds of each arm. Before all of them are there, or the early
      look has ended a contrast, it is undecided, whatever it looks like.
  """
  ended = ended_early(claim, rows)
  scores = {arm: _scores(claim, rows, arm) for arm in claim.arms}
  differences = {
      c: significance.difference(
          scores[c.first], scores[c.second], claim.level
      )
      for c in claim.contrasts
      if min(len(scores[c.first]), len(scores[c.second])) >= 2
  }
  # The family is all contrasts, those that have no test yet included.
  corrected = significance.holm([
      _p(claim, c, scores, differences[c]) if c in differences else 1.0
      for c in claim.contrasts
  ])
  outcomes = []
  for c, p in zip(claim.contrasts, corrected, strict=True):
    counts = len(scores[c.first]), len(scores[c.second])
    wanted = len(seeds[c.first]), len(seeds[c.second])
    d = differences.get(c)
    over = c in ended or (counts[0] >= wanted[0] and counts[1] >= wanted[1])
    outcome = _outcome(claim, c, d, p) if over and d else 'undecided'
    outcomes.append(
        Outcome(
            c, outcome, counts, wanted, d, p, _size(rows, c),
            _interval(claim, rows, c),
        )
    )
  return outcomes


def outcome(claim: Claim, outcomes: Sequence[Outcome]) -> str:
  """The outcome of the whole claim."""
  found = [o.outcome for o in outcomes]
  # What one contrast decides, and what all must agree in.
  one, all_ = ('contradicted', 'reproduced')[:: 1 if claim.every else -1]
  if one in found:
    return one
  return all_ if set(found) == {all_} else 'undecided'


def _p(claim, contrast, scores, difference) -> float:
  if contrast.kind == 'better':
    return difference.p
  return significance.equivalence(
      scores[contrast.first], scores[contrast.second], claim.margin
  )


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


def _scores(claim, rows, arm, first: int | None = None) -> list[float]:
  """Means of an arm in the order of its seeds, of the first ones alone."""
  of_arm = sorted((r for r in rows if r['name'] == arm),
                  key=lambda row: row['seed'])
  return [mean(claim.left_out)(row) for row in of_arm[:first]]


def _interval(claim, rows, contrast) -> tuple[float, float] | None:
  return intervals.difference(*(
      intervals.scores([r for r in rows if r['name'] == arm], claim.left_out)
      for arm in (contrast.first, contrast.second)
  ))


def _size(rows, contrast) -> float:
  """Of the medians, since every seed of an arm trains as many parameters."""
  sizes = [
      [row['trainable'] for row in rows if row['name'] == arm]
      for arm in (contrast.first, contrast.second)
  ]
  if not all(sizes):
    return math.nan
  return statistics.median(sizes[0]) / statistics.median(sizes[1])
