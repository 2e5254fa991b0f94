# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arms over a bank: what other arms have trained becomes its experts.

A gin file with `BANK_OF = ('lemma', 'stress')` is trained over the bank of what
the files of these names in its folder have trained, each with the same seed.
"""

from collections.abc import Iterable, Mapping, Sequence
import itertools
from pathlib import Path

from moe_peft import errors
from moe_peft.experts import bank_file
from moe_peft.runs import run_file
from moe_peft.study import configurations

StudyRun = configurations.StudyRun


def depths(bank_of: Mapping[str, Sequence[str]]) -> dict[str, int]:
  """How many arms must have been trained before each, one over the other.

  Args:
    bank_of: BANK_OF by name of the gin file, of all files of a folder.

  Raises:
    errors.UserError: If a name is no file, or a bank needs itself.
  """
  found: dict[str, int] = {}

  def depth(name: str, above: tuple[str, ...]) -> int:
    if name not in bank_of:
      raise errors.UserError(
          f'{above[-1]}.gin sets BANK_OF to {tuple(bank_of[above[-1]])}, and '
          f'there is no {name}.gin beside it.',
          'BANK_OF', f'There are {", ".join(bank_of)}.',
      )
    if name in above:
      raise errors.UserError(
          f'A bank needs itself: {" needs ".join((*above, name))}.', 'BANK_OF',
      )
    if name not in found:
      inside = [depth(x, (*above, name)) for x in bank_of[name]]
      found[name] = 1 + max(inside, default=-1)
    return found[name]

  for name in bank_of:
    depth(name, ())
  return found


def with_experts(
    asked: Mapping[str, Sequence[int]],
    known: Sequence[configurations.Configuration],
) -> set[tuple[str, int]]:
  """Names and seeds that are asked for, with those of the experts they need.

  Args:
    asked: Seeds by name of the gin file.
    known: What the study runs; names and seeds beyond are left out.
  """
  by_name, found = {c.name: c for c in known}, set()
  waiting = [(name, seed) for name, seeds in asked.items() for seed in seeds]
  while waiting:
    name, seed = waiting.pop()
    if name in by_name and seed in by_name[name].seeds:
      found.add((name, seed))
      waiting += [(expert, seed) for expert in by_name[name].bank_of]
  return found


def stages(runs: Sequence[StudyRun]) -> list[list[StudyRun]]:
  """The runs, those first that others need: seed by seed, if any needs some."""
  if not any(run.configuration.depth for run in runs):
    return [list(runs)]
  seeds = list(dict.fromkeys(run.seed for run in runs))
  key = lambda run: (seeds.index(run.seed), run.configuration.depth)
  grouped = itertools.groupby(sorted(runs, key=key), key)
  return [list(group) for _, group in grouped]


def check(runs: Sequence[StudyRun]) -> None:
  """Checks that the experts of all runs are there, or are among the runs.

  Raises:
    errors.UserError: If not, as where a row is known and its run is gone.
  """
  folders = {run.folder for run in runs}
  for run in runs:
    for name, expert in run.experts.items():
      if expert not in folders and not run_file.is_finished(expert):
        raise errors.UserError(
            f'{run.configuration.name} with seed {run.seed} needs the run of '
            f'{name}, which is not there.', expert,
            f'Run {name} with it: leave out --only, and delete its row of this '
            'seed where results.json has one.',
        )


def commands(
    runs: Sequence[StudyRun], trust: bool
) -> list[tuple[Path, list[str]]]:
  """What builds the banks of some runs: folders for logs, and arguments.

  A bank that is older than one of its experts is built again.

  Args:
    runs: The runs; those of their experts have ended.
    trust: Whether the `config.gin` of an expert is run as code.
  """
  wanted = {run.bank: run for run in runs if run.bank is not None}
  return [
      (folder.parent, _arguments(folder, run, trust))
      for folder, run in wanted.items()
      if not _is_built(folder, run.experts.values())
  ]


def _is_built(folder: Path, experts: Iterable[Path]) -> bool:
  made = folder / bank_file.FILE
  return made.is_file() and all(
      (expert / run_file.FILE).stat().st_mtime <= made.stat().st_mtime
      for expert in experts
  )


def _arguments(folder: Path, run: StudyRun, trust: bool) -> list[str]:
  return [
      'bank', 'build', f'--base={run.configuration.base}', f'--out={folder}',
      '--force', *(['--trust_gin'] if trust else []),
      *(f'--from={name}={path}' for name, path in run.experts.items()),
  ]
