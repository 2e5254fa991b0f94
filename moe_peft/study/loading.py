# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the gin files of a study, before anything runs."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import re
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.data import catalog
from moe_peft.study import banks
from moe_peft.study import claims
from moe_peft.study import configurations
from moe_peft.study import tuning

Configuration = configurations.Configuration
StudyOptions = configurations.StudyOptions

_DEFAULT_SEEDS = (0, 1, 2)
# These macros belong to a single run, or say where something lies, or name
# code, which moves: SITES and the others say what ADAPTER_RULES do.
_NOT_COMPARED = re.compile(
    r'MODEL_DIR|SEEDS?|TUNE|TUNING_SEEDS|RUNGS|EVAL_SPLIT|ADAPTER_RULES'
    r'|.*_(DIR|PATH|FILE)'
)


def load(options: StudyOptions) -> dict[str, list[Configuration]]:
  """Reads all gin files, before anything runs.

  Returns:
    The configurations by name of the folder inside, '' for the folder itself.

  Raises:
    errors.UserError: For a folder, file, name, seed or grid that is wrong.
  """
  top = Path(options.folder)
  if not top.is_dir():
    top = gin_files.resource(options.folder)
  files = [
      file
      for file in sorted(top.glob('*.gin')) or sorted(top.glob('*/*.gin'))
      if file.name != claims.FILE
  ]
  if not files:
    raise errors.UserError('The folder holds no gin file.', options.folder)
  _check_bindings(options.gin_bindings)
  _check_names(options, sorted({file.stem for file in files}))
  studies: dict[str, list[Configuration]] = {}
  tuned = set()
  for file in files:
    if not options.only or file.stem in options.only:
      inside = '' if file.parent == top else file.parent.name
      configuration = _read(file, options, options.out / inside / file.stem)
      studies.setdefault(inside, []).append(configuration)
      tuned |= set(configuration.trials[0])
  if unknown := set(options.tune) - tuned:
    raise errors.UserError(
        f'No gin file of {options.folder} has {min(unknown)}.', '--tune'
    )
  return {name: _with_depths(found, files) for name, found in studies.items()}


def _with_depths(
    configurations: Sequence[Configuration], files: Sequence[Path]
) -> list[Configuration]:
  """The configurations of a folder, each with what must come before it."""
  top = configurations[0].file.parent
  # Files that do not run now may have done so before.
  bank_of = {file.stem: () for file in files if file.parent == top} | {
      c.name: c.bank_of for c in configurations
  }
  depths = banks.depths(bank_of)
  return [dataclasses.replace(c, depth=depths[c.name]) for c in configurations]


def _check_bindings(bindings: Sequence[str]) -> None:
  """Refuses what would take the place of each run's own seed or folder."""
  names = {binding.partition('=')[0].strip() for binding in bindings}
  if taken := names & configurations.GIVEN:
    raise errors.UserError(
        f'The study sets {min(taken)} itself, for each run.',
        f'--gin.{min(taken)}',
        'The flags --seeds, --split and --out say which.',
    )


def _check_names(options: StudyOptions, names: Sequence[str]) -> None:
  asked = [('--only', name) for name in options.only]
  # The reference may be missing from --only: its rows may be there already.
  asked += [('--reference', options.reference)] if options.reference else []
  for flag, name in asked:
    if name not in names:
      raise errors.UserError(
          f'{options.folder} has no gin file {name}.', flag,
          f'It has {", ".join(names)}.',
      )


def _load(file: Path, options: StudyOptions, *bindings: str) -> None:
  """Loads a file's configuration with more bindings; errors name the file."""
  try:
    gin_files.load_gin(
        [str(file), *options.gin_file],
        [*options.gin_bindings, *bindings],
        options.gin_search_paths,
        options.trust_gin,
        {'MODEL_DIR': 'unused'},
    )
  except errors.UserError as error:
    if file.name in str(error):
      raise
    # What is missing stands in no line of a file.
    raise errors.UserError(
        f'{file}: {error.what}', error.where, error.remedy
    ) from error


def _read(file: Path, options: StudyOptions, folder: Path) -> Configuration:
  """Loads a file's configuration and reads its macros."""
  import gin

  _load(file, options)
  macros = {
      name: gin.query_parameter(f'%{name}') for name in gin_files.macros()
  }
  if 'MODEL_DIR' not in macros:  # It would end each run with an error.
    raise errors.UserError(
        f'{file} describes no run: it has no MODEL_DIR.', file,
        'Include a run file, such as gin/runs/finetune.gin.',
    )
  if options.tune:
    grid = {k: values for k, values in options.tune.items() if k in macros}
  else:
    grid = _grid(file, macros.get('TUNE', {}), macros)
  flag = '--tune' if options.tune else 'TUNE'
  if taken := grid.keys() & configurations.GIVEN:
    raise errors.UserError(
        f'The study sets {min(taken)} itself, for each run.', flag,
        'Tune other macros.',
    )
  for name, values in grid.items():
    if len(set(values)) < len(values):
      raise errors.UserError(
          f'{name} has a value twice: {", ".join(values)}.', flag
      )
    for value in values:
      _load(file, options, f'{name}={value}')  # Says what is wrong with it.
  bank_of = macros.get('BANK_OF', ())
  if bank_of and grid:
    raise errors.UserError(
        f'{file} sets BANK_OF, and {min(grid)} is tuned.', 'TUNE',
        'Tune the files that the bank is made of.',
    )
  base = macros.get('INITIAL_CHECKPOINT_PATH')
  if bank_of and base is None:
    raise errors.UserError(
        f'{file} sets BANK_OF, and trains on no base.',
        'INITIAL_CHECKPOINT_PATH', 'Name that of the files of the bank.',
    )
  _check_split(macros, options.split)
  declared = _seeds(file, macros.get('SEEDS', _DEFAULT_SEEDS))
  seeds = options.seeds or declared
  trials = [
      dict(zip(grid, values, strict=True))
      for values in itertools.product(*grid.values())
  ]
  return Configuration(
      file,
      folder,
      seeds,
      trials,
      {
          name: str(value)
          for name, value in macros.items()
          if not _NOT_COMPARED.fullmatch(name)
      },
      macros.get('EVAL_MIXTURE_OR_TASK_NAME') is not None,
      tuning.read(file, macros, seeds, len(trials)),
      declared,
      bank_of,
      base,
  )


def _check_split(macros: Mapping[str, Any], split: str) -> None:
  """Checks a split; of tasks that a call registers, the run will."""
  name = macros.get('MIXTURE_OR_TASK_NAME')
  if isinstance(name, str):
    name = macros.get('EVAL_MIXTURE_OR_TASK_NAME') or name
    catalog.check_split(name, split, '--split')


def _grid(file: Path, grid: Any, macros) -> dict[str, list[str]]:
  if not isinstance(grid, dict) or not all(
      isinstance(values, (tuple, list)) and values for values in grid.values()
  ):
    raise errors.UserError(
        f'{file} sets TUNE to {grid!r}.', 'TUNE',
        "Give values for each macro, as {'LEARNING_RATE': (1e-3, 3e-3)}.",
    )
  if unknown := set(grid) - set(macros):
    raise errors.UserError(
        f'TUNE names {min(unknown)}, which is no macro of {file}.', 'TUNE'
    )
  return {name: [str(value) for value in grid[name]] for name in grid}


def _seeds(file: Path, seeds: Any) -> Sequence[int]:
  if (
      not isinstance(seeds, (tuple, list))
      or not seeds
      or not all(isinstance(seed, int) for seed in seeds)
      or len(set(seeds)) < len(seeds)
  ):
    raise errors.UserError(
        f'{file} sets SEEDS to {seeds!r}.', 'SEEDS',
        'Give whole numbers, each of them once, as (0, 1).',
    )
  return seeds
