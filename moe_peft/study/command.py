# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.study`: runs, resumes and tabulates experiments."""

import argparse
import dataclasses
import itertools
from pathlib import Path
import sys
from typing import Any, Callable, Mapping, Optional, Sequence

from moe_peft import command_line
from moe_peft import errors
from moe_peft.study import processes
from moe_peft.study import records as records_lib
from moe_peft.study import tables

_DESCRIPTION = """\
Trains every gin file of a folder (or of its subfolders, one study each) with
every seed, scores each run on a split, and writes results.json and table.md
(mean and standard deviation over seeds). Where a file has the macro TUNE, a
grid of values of other macros, it is first run once for each combination, with
its first seed, and scored on the validation split; the best values are used
from then on. The macro SEEDS has a file's seeds. What results.json and
tuning.json hold is not run again, and a run that was interrupted goes on from
its checkpoint: run the same command again."""

_DEFAULT_SEEDS = (0, 1, 2)
_STOPPED = 143  # As of a training run that a signal ends.


@dataclasses.dataclass(frozen=True)
class _Experiment:
  """A gin file of the study.

  Attributes:
    file: The file.
    seeds: Its seeds.
    trials: Values to choose from; one empty entry if there is no choice.
  """

  file: Path
  seeds: Sequence[int]
  trials: Sequence[records_lib.Values]

  @property
  def name(self) -> str:
    return self.file.stem


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and runs the study."""
  args = _parser().parse_args(argv)
  if args.jobs < 1:
    raise errors.UserError(f'--jobs={args.jobs}: at least one has to run.')
  args.results = args.results or args.out
  args.seeds = args.seeds and _seeds(args.seeds)
  try:
    for folder in _folders(args.folder):
      inside = folder.name if folder != _folder(args.folder) else ''
      _Study(
          _gin_files(folder, args.only),
          args.out / inside,
          records_lib.Records(args.results / inside),
          args,
      ).run()
  except processes.Stopped:
    print('Stopped; run the same command to continue.', file=sys.stderr)
    return _STOPPED
  return None


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.study',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft.study configs/study/wide '
      '--out runs/wide --reference lora',
  )
  parser.add_argument('folder', metavar='FOLDER', help='folder of gin files')
  parser.add_argument(
      '--out', type=Path, default=Path('runs/study'), help='where runs lie'
  )
  parser.add_argument(
      '--results', type=Path, metavar='DIR',
      help='where the small files lie, results.json, tuning.json and table.md '
      '(default: --out)',
  )
  parser.add_argument(
      '--seeds',
      help='comma-separated, instead of SEEDS (default: 0,1,2)',
  )
  parser.add_argument('--split', default='test', help='default: test')
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='run only this gin file of the folder; may be repeated',
  )
  parser.add_argument(
      '--tune', action='append', default=[], metavar='NAME=V,V,...',
      help='values of a macro to choose from, instead of TUNE; may be '
      'repeated: all combinations are tried; files without the macro are not '
      'concerned',
  )
  parser.add_argument(
      '--jobs', type=int, default=1, metavar='N',
      help='runs at a time, each on its share of the cores (default: 1)',
  )
  parser.add_argument(
      '--reference', metavar='NAME',
      help='adds columns against this gin file: difference of the mean, in '
      'bold where it exceeds the spread over seeds (t-test of Welch, 5 %%), time '
      'of a step and peak memory of the process, as ratios',
  )
  command_line.add_gin_flags(parser)
  return parser


class _Study:
  """The experiments of one folder."""

  def __init__(
      self,
      files: Sequence[Path],
      out: Path,
      records: records_lib.Records,
      args: argparse.Namespace,
  ):
    self._out, self._records, self._args = out, records, args
    self._experiments = _experiments(files, args)

  def run(self) -> None:
    """Tunes, trains and tabulates what is not finished."""
    records = self._records
    self._run_all(
        [
            _Run(
                e.file, e.seeds[0], 'validation', values,
                self._out / e.name / 'tuning'
                / (tables.text(values) or 'as_it_is'),
            )
            for e in self._experiments
            for values in e.trials
            if len(e.trials) > 1 and not records.trial(e.name, values)
        ],
        lambda run, row: records.add_trial(
            run.file.stem, run.values, records_lib.score(row)
        ),
    )
    best = {
        e.name: records.best(e.name, list(e.trials))
        if len(e.trials) > 1 else e.trials[0]
        for e in self._experiments
    }
    rounds = itertools.zip_longest(*(e.seeds for e in self._experiments))
    self._run_all(
        [
            _Run(e.file, seed, self._args.split, best[e.name],
                 self._out / e.name / f'seed{seed}')
            for seeds in rounds
            for e, seed in zip(self._experiments, seeds, strict=True)
            if seed is not None and not records.row(e.name, seed)
        ],
        self._add_row,
    )
    print(self._write_table())

  def _add_row(self, run: '_Run', row: records_lib.Row) -> None:
    tuned = {'tuned': dict(run.values)} if run.values else {}
    self._records.add_row(
        {'name': run.file.stem, 'seed': run.seed, **row, **tuned}
    )
    self._write_table()

  def _write_table(self) -> str:
    order = {e.name: number for number, e in enumerate(self._experiments)}
    rows = sorted(
        self._records.rows,
        key=lambda row: order.get(row['name'], len(order)),
    )
    text = tables.table(rows, self._args.reference)
    (self._records.folder / 'table.md').write_text(text, encoding='utf-8')
    return text

  def _run_all(
      self,
      runs: Sequence['_Run'],
      add: Callable[['_Run', records_lib.Row], None],
  ) -> None:
    """Runs what is not finished; `add` gets what each run has left."""
    ended = [run for run in runs if records_lib.is_finished(run.folder)]
    for run in ended:
      add(run, records_lib.read_run(run.folder))
    left = [run for run in runs if run not in ended]
    count = itertools.count(1)

    def done(index: int) -> None:
      run = left[index]
      add(run, records_lib.read_run(run.folder))
      print(f'[{next(count)}/{len(left)}] {run.folder}', file=sys.stderr,
            flush=True)

    processes.run_all(
        [(run.folder, self._arguments(run)) for run in left],
        self._args.jobs,
        done,
    )

  def _arguments(self, run: '_Run') -> list[str]:
    bindings = [
        f'MODEL_DIR={str(run.folder)!r}',
        # Runs of one base share its scores.
        f'BASE_RESULTS_DIR={str(self._out / "base_results")!r}',
        f'SEED={run.seed}',
        f'EVAL_SPLIT={run.split!r}',
        *self._args.gin_bindings,
        *(f'{name}={value}' for name, value in run.values.items()),
    ]
    return [
        *(f'--gin_file={name}' for name in (run.file, *self._args.gin_file)),
        f'--gin_search_paths={self._args.gin_search_paths}',
        *(f'--gin.{binding}' for binding in bindings),
    ]


@dataclasses.dataclass(frozen=True)
class _Run:
  """One training run: a gin file, a seed, a split to score, a folder."""

  file: Path
  seed: int
  split: str
  values: records_lib.Values
  folder: Path


def _experiments(
    files: Sequence[Path], args: argparse.Namespace
) -> list[_Experiment]:
  """Reads seeds and grids of all files, before anything runs."""
  asked = _grid(args.tune)
  found, experiments = set(), []
  for file in files:
    macros = _load(file, args)
    if asked:
      grid = {name: asked[name] for name in asked if name in macros}
      found |= set(grid)
    else:
      grid = {
          name: [str(value) for value in values]
          for name, values in _macro('TUNE', macros, {}).items()
      }
    if unknown := set(grid) - set(macros):
      raise errors.UserError(
          f'{file}: TUNE names {min(unknown)}, which is no macro of this file.'
      )
    seeds = args.seeds or _macro('SEEDS', macros, _DEFAULT_SEEDS)
    trials = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    experiments.append(_Experiment(file, seeds, trials))
  if untuned := set(asked) - found:
    raise errors.UserError(
        f'--tune={min(untuned)}: no gin file of {args.folder} has this macro.'
    )
  names = [experiment.name for experiment in experiments]
  if args.reference and args.reference not in names:
    raise errors.UserError(
        f'--reference={args.reference} is none of the gin files that are run: '
        f'{", ".join(names)}.'
    )
  return experiments


def _load(file: Path, args: argparse.Namespace) -> list[str]:
  """Loads a file's configuration; returns the names of its macros."""
  command_line.load_gin(
      [str(file), *args.gin_file],
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  return command_line.macros()


def _macro(name: str, macros: Sequence[str], default: Any) -> Any:
  import gin  # The files are loaded by now.

  return gin.query_parameter(f'%{name}') if name in macros else default


def _grid(options: Sequence[str]) -> Mapping[str, list[str]]:
  grid = {}
  for option in options:
    name, _, values = option.partition('=')
    grid[name] = [value for value in values.split(',') if value]
    if not name or not grid[name]:
      raise errors.UserError(
          f'--tune={option}: write it as --tune=LEARNING_RATE=1e-3,3e-3.'
      )
  return grid


def _folder(name: str) -> Path:
  path = Path(name)
  return path if path.is_dir() else command_line.resource(name)


def _folders(name: str) -> list[Path]:
  """The folder, or those in it if it holds no gin file itself."""
  path = _folder(name)
  if any(path.glob('*.gin')):
    return [path]
  inside = sorted({file.parent for file in path.glob('*/*.gin')})
  if not inside:
    raise errors.UserError(f'{name} holds no gin file.')
  return inside


def _gin_files(folder: Path, only: Sequence[str]) -> list[Path]:
  files = sorted(folder.glob('*.gin'))
  names = [file.stem for file in files]
  for name in only:
    if name not in names:
      raise errors.UserError(
          f'--only={name}: {folder} has {", ".join(names)}.'
      )
  return [file for file in files if not only or file.stem in only]


def _seeds(text: str) -> list[int]:
  try:
    return [int(seed) for seed in text.split(',')]
  except ValueError as error:
    raise errors.UserError(
        f'--seeds={text}: give whole numbers with commas, as 0,1,2.'
    ) from error
