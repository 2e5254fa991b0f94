# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a study runs: gin files with their seeds and grids, read beforehand."""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import re
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.study import records

_DEFAULT_SEEDS = (0, 1, 2)
# Of a run and not of its experiment, or a place and not a setting.
_NOT_CONFIG = re.compile(r'MODEL_DIR|SEEDS?|TUNE|EVAL_SPLIT|.*_(DIR|PATH|FILE)')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A gin file of the study.

  Attributes:
    file: The file.
    seeds: Its seeds.
    trials: Values to choose from; one entry if there is no choice.
    config: Text of its macros, those of single runs and of places excepted.
    evaluates_more: Whether it evaluates tasks that it does not train on.
  """

  file: Path
  seeds: Sequence[int]
  trials: Sequence[records.Values]
  config: Mapping[str, str]
  evaluates_more: bool

  @property
  def name(self) -> str:
    return self.file.stem


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    experiment: Of which experiment.
    seed: Its seed.
    split: What is scored.
    values: Values of the macros that were tuned.
    folder: MODEL_DIR.
  """

  experiment: Experiment
  seed: int
  split: str
  values: records.Values
  folder: Path

  def arguments(self, args: argparse.Namespace, out: Path) -> list[str]:
    """Arguments of `python -m moe_peft.train`.

    Args:
      args: The study's, for its gin flags.
      out: Where runs of one base share its scores.
    """
    bindings = [
        f'MODEL_DIR={str(self.folder)!r}',
        f'BASE_RESULTS_DIR={str(out / "base_results")!r}',
        f'SEED={self.seed}',
        f'EVAL_SPLIT={self.split!r}',
        *args.gin_bindings,
        *(f'{name}={value}' for name, value in self.values.items()),
    ]
    if self.split == 'validation' and self.experiment.evaluates_more:
      # Held-out tasks choose nothing, so a trial need not score them.
      bindings.append('EVAL_MIXTURE_OR_TASK_NAME=None')
    files = (self.experiment.file, *args.gin_file)
    return [
        *(f'--gin_file={name}' for name in files),
        f'--gin_search_paths={args.gin_search_paths}',
        *(f'--gin.{binding}' for binding in bindings),
    ]


def load(args: argparse.Namespace) -> dict[str, list[Experiment]]:
  """Reads all gin files, before anything runs.

  Args:
    args: The study's arguments; `folder` holds gin files, or folders of them.

  Returns:
    The experiments by name of the folder inside, '' for the folder itself.

  Raises:
    errors.UserError: For a folder, file, name, seed or grid that is wrong.
  """
  top = Path(args.folder)
  if not top.is_dir():
    top = gin_files.resource(args.folder)
  files = sorted(top.glob('*.gin')) or sorted(top.glob('*/*.gin'))
  names = sorted({file.stem for file in files})
  if not files:
    raise errors.UserError(f'{args.folder} holds no gin file.')
  asked_for = [('only', name) for name in args.only]
  if args.reference:  # It may have been run before.
    asked_for.append(('reference', args.reference))
  for flag, name in asked_for:
    if name not in names:
      raise errors.UserError(
          f'--{flag}={name}: {args.folder} has {", ".join(names)}.'
      )
  files = [file for file in files if not args.only or file.stem in args.only]
  asked = _grid(args.tune)
  studies: dict[str, list[Experiment]] = {}
  found = set()
  for file in files:
    inside = '' if file.parent == top else file.parent.name
    experiment = _read(file, asked, args)
    studies.setdefault(inside, []).append(experiment)
    found |= set(experiment.trials[0])
  if untuned := set(asked) - found:
    raise errors.UserError(
        f'--tune={min(untuned)}: no gin file of {args.folder} has this macro.'
    )
  return studies


def parse_seeds(text: str) -> list[int]:
  """Seeds of the command line; errors.UserError for anything else."""
  try:
    seeds = [int(seed) for seed in text.split(',')]
  except ValueError as error:
    raise errors.UserError(
        f'--seeds={text}: give whole numbers with commas, as 0,1,2.'
    ) from error
  if len(set(seeds)) < len(seeds):
    raise errors.UserError(f'--seeds={text}: a seed stands there twice.')
  return seeds


def _read(
    file: Path, asked: Mapping[str, list[str]], args: argparse.Namespace
) -> Experiment:
  """Loads a file's configuration and reads its macros."""
  gin_files.load_gin(
      [str(file), *args.gin_file],
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  macros = {name: _macro(name) for name in gin_files.macros()}
  if asked:
    grid = {name: asked[name] for name in asked if name in macros}
  else:
    grid = _check_grid(file, macros.get('TUNE', {}), macros)
  return Experiment(
      file,
      args.seeds or _check_seeds(file, macros.get('SEEDS', _DEFAULT_SEEDS)),
      [
          dict(zip(grid, values, strict=True))
          for values in itertools.product(*grid.values())
      ],
      {
          name: str(value)
          for name, value in macros.items()
          if not _NOT_CONFIG.fullmatch(name)
      },
      macros.get('EVAL_MIXTURE_OR_TASK_NAME') is not None,
  )


def _macro(name: str) -> Any:
  import gin  # The files are loaded by now.

  return gin.query_parameter(f'%{name}')


def _check_grid(file: Path, grid: Any, macros) -> dict[str, list[str]]:
  if not isinstance(grid, dict) or not all(
      isinstance(values, (tuple, list)) and values for values in grid.values()
  ):
    raise errors.UserError(
        f'{file}: TUNE = {grid!r}: give values for each macro, as '
        "{'LEARNING_RATE': (1e-3, 3e-3)}."
    )
  if unknown := set(grid) - set(macros):
    raise errors.UserError(
        f'{file}: TUNE names {min(unknown)}, which is no macro of this file.'
    )
  return {name: [str(value) for value in grid[name]] for name in grid}


def _check_seeds(file: Path, seeds: Any) -> Sequence[int]:
  if (
      not isinstance(seeds, (tuple, list))
      or not seeds
      or not all(isinstance(seed, int) for seed in seeds)
      or len(set(seeds)) < len(seeds)
  ):
    raise errors.UserError(
        f'{file}: SEEDS = {seeds!r}: give whole numbers, each once, as (0, 1).'
    )
  return seeds


def _grid(options: Sequence[str]) -> dict[str, list[str]]:
  grid = {}
  for option in options:
    name, _, values = option.partition('=')
    grid[name] = [value for value in values.split(',') if value]
    if not name or not grid[name]:
      raise errors.UserError(
          f'--tune={option}: write it as --tune=LEARNING_RATE=1e-3,3e-3.'
      )
  return grid
