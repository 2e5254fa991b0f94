# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of claims: reproduced, contradicted or undecided, and how much."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path

from moe_peft import atomic
from moe_peft.study import claims as claims_lib
from moe_peft.study import outcomes as outcomes_lib
from moe_peft.study import significance
from moe_peft.study import tables

FILE = 'table.md'
SINGLE = 'claim.md'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A claim and how it stands.

  Attributes:
    name: Name of its folder.
    claim: The claim.
    outcomes: Outcomes of its contrasts.
    seeds: By arm, the seeds that it has when it is complete.
  """

  name: str
  claim: claims_lib.Claim
  outcomes: Sequence[outcomes_lib.Outcome]
  seeds: Mapping[str, Sequence[int]]


def power(
    claim: claims_lib.Claim, seeds: Mapping[str, Sequence[int]]
) -> str:
  """What a claim's tests can find, in a sentence."""
  fewest = min(len(seeds[arm]) for arm in claim.arms)
  if fewest < 2:
    return 'One seed an arm has no spread: it can decide nothing.'
  family = len(claim.contrasts)
  points = significance.detectable(
      fewest, claim.deviation, claim.level / family
  )
  return (
      f'{fewest} seeds an arm, {family} contrast{"s"[: family > 1]}: with a '
      f'standard deviation of {claim.deviation} points over seeds, a '
      f'difference of {points:.1f} points is found with a power of 80 %.'
  )


def write(verdicts: Sequence[Verdict | None], folder: Path) -> None:
  """Writes the table of the claims of several folders.

  Without any claim nothing is written.

  Args:
    verdicts: Verdicts of the folders; None for those that make no claim.
    folder: Folder of the table. The table of a study of one folder has a name
      of its own, `claim.md`, since `table.md` holds that study's rows.
  """
  made = [verdict for verdict in verdicts if verdict]
  if made:
    name = SINGLE if len(verdicts) == 1 else FILE
    atomic.write(folder / name, table(made))


def table(verdicts: Sequence[Verdict]) -> str:
  """One line a contrast, after one line a claim."""
  lines = [
      ['claim', 'contrast', 'outcome', 'seeds', 'difference', '95 % interval',
       'p (Holm)', 'parameters'],
      ['---', '---', '---', '--:', '--:', '--:', '--:', '--:'],
  ]
  for verdict in verdicts:
    found = outcomes_lib.of_claim(verdict.claim, verdict.outcomes)
    lines.append([
        f'**{verdict.name}**: {verdict.claim.text}', '', f'**{found}**',
        *[''] * 5,
    ])
    lines += [['', *_cells(outcome)] for outcome in verdict.outcomes]
  notes = [
      f'- {v.name}: {power(v.claim, v.seeds)} Source: {v.claim.source}.\n'
      for v in verdicts
  ]
  # Most claims share their setting.
  notes += [
      f'- {setting}\n'
      for setting in dict.fromkeys(v.claim.setting for v in verdicts) if setting
  ]
  if any(o.interval for v in verdicts for o in v.outcomes):
    notes.append(
        '- Intervals are of seeds and rows together where the runs of both '
        'arms say which rows were right; p is of seeds alone.\n'
    )
  return f'{tables.markdown(lines)}\n{"".join(notes)}'


def _cells(outcome: outcomes_lib.Outcome) -> list[str]:
  contrast, d = outcome.contrast, outcome.difference
  numbers = ['', '', '']
  if d is not None:
    low, high = outcome.interval or (d.low, d.high)
    numbers = [f'{d.value:+.1f}', f'{low:+.1f} to {high:+.1f}', _p(outcome.p)]
  size = '' if math.isnan(outcome.size) else f'{outcome.size:.2f}'
  return [
      f'{contrast.first} {_WORDS[contrast.kind]} {contrast.second}',
      outcome.outcome,
      ', '.join(
          f'{there}' if there >= wanted else f'{there} of {wanted}'
          for there, wanted in zip(outcome.seeds, outcome.wanted, strict=True)
      ),
      *numbers,
      size,
  ]


_WORDS = {'better': 'better than', 'as good': 'as good as'}


def _p(p: float) -> str:
  return '< 0.001' if p < 0.001 else f'{p:.3f}'
