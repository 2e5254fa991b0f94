# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Claims: what a study asks, written down before it runs.

A folder of a study may hold `claim.gin`, which is no run: it names the
contrasts that are tested, as one family, and what makes them true or false.
Whatever else the study shows is exploratory.
"""

from collections.abc import Callable, Container, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.evaluation import spread
from moe_peft.study import records
from moe_peft.study import run_rows

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
    """The level of the last test; the early look takes its part of 0.05."""
    return spread.LEVEL if self.look is None else spread.LEVEL - self.look[1]

  @property
  def arms(self) -> tuple[str, ...]:
    """Names of the gin files that it compares, each of them once."""
    both = [arm for c in self.contrasts for arm in (c.first, c.second)]
    return tuple(dict.fromkeys(both))


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
      and all(isinstance(arm, str) for arm in c) and c[1] != c[2]
      for c in value
  )


def _is_look(value: Any) -> bool:
  return (
      isinstance(value, (tuple, list)) and len(value) == 2
      and isinstance(value[0], int) and value[0] >= 2
      and isinstance(value[1], float) and 0 < value[1] < spread.LEVEL
  )


def check_left_out(claim: Claim, rows: Sequence[records.Row]) -> None:
  """Checks what a claim leaves out against the tasks of its runs.

  Args:
    claim: The claim.
    rows: One or more, as `tables.compared` returns them.

  Raises:
    errors.UserError: If it is none of the tasks, or all that count.
  """
  tasks, left_out = rows[0]['adapted'], set(claim.left_out)
  # What counts is known once all arms are there: an expert has its own task.
  there = set(claim.arms) <= {row['name'] for row in rows}
  counted = run_rows.counted(rows[0]) if there else tasks
  if left_out - set(tasks) or left_out >= set(counted):
    raise errors.UserError(
        f'The claim leaves out {", ".join(claim.left_out)}; the tasks that '
        f'count are {", ".join(counted)}.', 'LEFT_OUT',
        'Name some of them, and not all.',
    )


def mean(left_out: Container[str]) -> Callable[[records.Row], float]:
  """The mean of a row over the tasks that were trained on, some left out."""
  return lambda row: run_rows.score(row, left_out)
