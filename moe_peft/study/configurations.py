# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a study runs: gin files with their seeds and grids, read beforehand."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import re
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.data import catalog
from moe_peft.study import claims
from moe_peft.study import records
from moe_peft.study import tuning

_DEFAULT_SEEDS = (0, 1, 2)
# These macros belong to a single run, or say where something lies, or name
# code, which moves: SITES and the others say what ADAPTER_RULES do.
_NOT_COMPARED = re.compile(
    r'MODEL_DIR|SEEDS?|TUNE|TUNING_SEEDS|RUNGS|EVAL_SPLIT|ADAPTER_RULES'
    r'|.*_(DIR|PATH|FILE)'
)


@dataclasses.dataclass(frozen=True)
class StudyOptions:
  """What the command line says about a study.

  Attributes:
    folder: Folder of gin files, or of folders of them, by path or by the name
      it ships under.
    out: Where the runs lie.
    results: Where records and tables lie.
    seeds: Seeds of all configurations; None leaves each its own.
    split: The split that the table scores.
    only: Names of the gin files that run; empty for all.
    tune: Values of macros to choose from, in the place of the files' TUNE.
    jobs: How many runs go on at a time.
    merge: Results of other machines, to be added; nothing runs then.
    reference: The gin file with which the table compares the others.
    gin_file: Gin files that are read after each one of the folder.
    gin_bindings: Bindings that are read last.
    gin_search_paths: Folders of gin files, with commas.
    trust_gin: Whether a `config.gin` among them is run as code.
  """

  folder: str
  out: Path
  results: Path
  seeds: Sequence[int] | None = None
  split: str = 'test'
  only: Sequence[str] = ()
  tune: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  jobs: int = 1
  merge: Sequence[Path] = ()
  reference: str | None = None
  gin_file: Sequence[str] = ()
  gin_bindings: Sequence[str] = ()
  gin_search_paths: str = ''
  trust_gin: bool = False


@dataclasses.dataclass(frozen=True)
class Configuration:
  """A gin file of the study.

  Attributes:
    file: The file.
    folder: Where its runs lie.
    seeds: Its seeds.
    trials: Values to choose from; one entry if there is no choice.
    macros: Text of its macros, except those of single runs and of places.
    evaluates_more: Whether it evaluates tasks that it does not train on.
    plan: How the trials are made.
    declared_seeds: Those of the file, whatever --seeds says.
  """

  file: Path
  folder: Path
  seeds: Sequence[int]
  trials: Sequence[records.Values]
  macros: Mapping[str, str]
  evaluates_more: bool
  plan: tuning.Plan = tuning.Plan()
  declared_seeds: Sequence[int] = ()

  @property
  def name(self) -> str:
    return self.file.stem

  def trial(self, trial: tuning.Trial) -> 'StudyRun':
    """The run of a trial, by default with the first seed of the table."""
    folder = self.folder / 'tuning'
    if trial.seed is not None:
      folder /= f'steps{trial.steps}-seed{trial.seed}'
    seed = self.seeds[0] if trial.seed is None else trial.seed
    return StudyRun(
        self, seed, 'validation', trial.values,
        folder / records.text(trial.values), trial.steps,
    )

  def run(self, seed: int, values: records.Values, split: str) -> 'StudyRun':
    """The run of a seed that the table counts."""
    return StudyRun(self, seed, split, values, self.folder / f'seed{seed}')


@dataclasses.dataclass(frozen=True)
class StudyRun:
  """One training run.

  Attributes:
    configuration: What it trains.
    seed: Its seed.
    split: The split that it scores.
    values: Values of the macros that are tuned.
    folder: MODEL_DIR.
    steps: TRAIN_STEPS, if they are not those of the file.
  """

  configuration: Configuration
  seed: int
  split: str
  values: records.Values
  folder: Path
  steps: int | None = None

  def arguments(self, options: StudyOptions) -> list[str]:
    """Arguments of `python -m moe_peft.train`."""
    # Runs of one base share its scores.
    base_results = self.configuration.folder.parent / 'base_results'
    bindings = [
        f'MODEL_DIR={str(self.folder)!r}',
        f'BASE_RESULTS_DIR={str(base_results)!r}',
        f'SEED={self.seed}',
        f'EVAL_SPLIT={self.split!r}',
        *options.gin_bindings,
        *(f'{name}={value}' for name, value in self.values.items()),
        *([f'TRAIN_STEPS={self.steps}'] if self.steps else []),
    ]
    if self.split == 'validation' and self.configuration.evaluates_more:
      # Held-out tasks choose nothing, so a trial need not score them.
      bindings.append('EVAL_MIXTURE_OR_TASK_NAME=None')
    files = (self.configuration.file, *options.gin_file)
    return [
        *(f'--gin_file={name}' for name in files),
        f'--gin_search_paths={options.gin_search_paths}',
        *(['--trust_gin'] if options.trust_gin else []),
        *(f'--gin.{binding}' for binding in bindings),
    ]


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
        f'No gin file of {options.folder} has the macro {min(unknown)}.',
        '--tune',
    )
  return studies


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


def _read(file: Path, options: StudyOptions, folder: Path) -> Configuration:
  """Loads a file's configuration and reads its macros."""
  import gin

  def load_gin(*bindings):
    gin_files.load_gin(
        [str(file), *options.gin_file],
        [*options.gin_bindings, *bindings],
        options.gin_search_paths,
        options.trust_gin,
        {'MODEL_DIR': 'unused'},
    )

  load_gin()
  macros = {
      name: gin.query_parameter(f'%{name}') for name in gin_files.macros()
  }
  if options.tune:
    grid = {k: values for k, values in options.tune.items() if k in macros}
  else:
    grid = _grid(file, macros.get('TUNE', {}), macros)
  for name, values in grid.items():
    for value in values:
      load_gin(f'{name}={value}')  # Says what is wrong with a value.
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
