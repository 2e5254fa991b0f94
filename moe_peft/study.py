# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.study`: runs, resumes and tabulates experiments."""

import argparse
import itertools
import json
from pathlib import Path
import statistics
import subprocess
import sys
from typing import Any, Mapping, Optional, Sequence

from moe_peft import command_line
from moe_peft import errors

_DESCRIPTION = """\
Trains every gin file of a folder with every seed, scores each run on a split,
and writes OUT/results.json and OUT/table.md (mean and standard deviation over
seeds). With --tune, every file is first run once for each value, with the first
seed, and scored on the validation split; the best values are used from then on.
What is finished is not run again: after an interruption, run the same command
again."""

# Values of macros, as text: `{'LEARNING_RATE': '1e-3'}`.
Values = Mapping[str, str]


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and runs the study."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.study',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft.study configs/study '
      '--out runs/study',
  )
  parser.add_argument('folder', metavar='FOLDER', help='folder of gin files')
  parser.add_argument(
      '--out', type=Path, default=Path('runs/study'), help='where runs lie'
  )
  parser.add_argument(
      '--seeds', default='0,1,2', help='comma-separated (default: 0,1,2)'
  )
  parser.add_argument('--split', default='test', help='default: test')
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='run only this gin file of the folder; may be repeated',
  )
  parser.add_argument(
      '--tune', action='append', default=[], metavar='NAME=V,V,...',
      help='values of a macro to choose from; may be repeated: all '
      'combinations are tried; files without the macro are not concerned',
  )
  parser.add_argument(
      '--reference', metavar='NAME',
      help='adds columns: time of a step and peak memory of the process, as '
      'ratios to this gin file',
  )
  command_line.add_gin_flags(parser)
  args = parser.parse_args(argv)
  files = _gin_files(args.folder, args.only)
  seeds = _seeds(args.seeds)
  if args.reference and args.reference not in [file.stem for file in files]:
    raise errors.UserError(
        f'--reference={args.reference} is none of the gin files that are run: '
        f'{", ".join(file.stem for file in files)}.'
    )
  tuned = _tune(files, seeds[0], args)
  for number, (seed, file) in enumerate(
      [(seed, file) for seed in seeds for file in files], start=1
  ):
    _say(number, len(files) * len(seeds), f'{file.stem} seed {seed}')
    run_dir = _run_dir(args.out, file, seed)
    _run_one(file, run_dir, seed, args.split, tuned[file], args)
    _write_tables(files, seeds, tuned, args)
  print((args.out / 'table.md').read_text(encoding='utf-8'))
  return None


def _say(number: int, total: int, text: str) -> None:
  print(f'[{number}/{total}] {text}', file=sys.stderr, flush=True)


def _tune(
    files: Sequence[Path], seed: int, args: argparse.Namespace
) -> dict[Path, Values]:
  """Returns the best values for each file; the scores go to tuning.json."""
  grid = _grid(args.tune)
  if not grid:
    return {file: {} for file in files}
  trials = [
      (file, values)
      for file in files
      for values in _combinations(grid, _macros(file, args))
  ]
  if untuned := set(grid) - {name for _, values in trials for name in values}:
    raise errors.UserError(
        f'--tune={min(untuned)}: no gin file of {args.folder} has this macro.'
    )
  scores: dict[Path, list[tuple[float, Values]]] = {}
  for number, (file, values) in enumerate(trials, start=1):
    name = _text(values)
    _say(number, len(trials), f'tuning {file.stem} {name}')
    run_dir = args.out / file.stem / 'tuning' / (name or 'as_it_is')
    _run_one(file, run_dir, seed, 'validation', values, args)
    mean = statistics.fmean(_read_run(run_dir)['adapted'].values())
    scores.setdefault(file, []).append((mean, values))
  table = {
      file.stem: [{'validation': mean, **values} for mean, values in of_file]
      for file, of_file in scores.items()
  }
  (args.out / 'tuning.json').write_text(
      json.dumps(table, indent=1) + '\n', encoding='utf-8'
  )
  # The first of equals.
  return {
      file: max(of_file, key=lambda trial: trial[0])[1]
      for file, of_file in scores.items()
  }


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


def _combinations(
    grid: Mapping[str, Sequence[str]], macros: Sequence[str]
) -> list[Values]:
  names = [name for name in grid if name in macros]
  return [
      dict(zip(names, values, strict=True))
      for values in itertools.product(*(grid[name] for name in names))
  ]


def _macros(file: Path, args: argparse.Namespace) -> list[str]:
  command_line.load_gin(
      [str(file), *args.gin_file],
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  return command_line.macros()


def _text(values: Values) -> str:
  return ','.join(f'{name}={value}' for name, value in values.items())


def _gin_files(folder: str, only: Sequence[str]) -> list[Path]:
  path = Path(folder)
  files = sorted(
      (path if path.is_dir() else command_line.resource(folder)).glob('*.gin')
  )
  names = [file.stem for file in files]
  for name in only:
    if name not in names:
      raise errors.UserError(
          f'--only={name}: {folder} has {", ".join(names) or "no gin file"}.'
      )
  if not files:
    raise errors.UserError(f'{folder} holds no gin file.')
  return [file for file in files if not only or file.stem in only]


def _seeds(text: str) -> list[int]:
  try:
    return [int(seed) for seed in text.split(',')]
  except ValueError as error:
    raise errors.UserError(
        f'--seeds={text}: give whole numbers with commas, as 0,1,2.'
    ) from error


def _run_dir(out: Path, file: Path, seed: int) -> Path:
  return out / file.stem / f'seed{seed}'


def _run_one(
    file: Path,
    run_dir: Path,
    seed: int,
    split: str,
    values: Values,
    args: argparse.Namespace,
) -> None:
  """Trains and scores one run in a process of its own, or continues it."""
  if _is_finished(run_dir):
    return
  bindings = [
      f'MODEL_DIR={str(run_dir)!r}',
      f'SEED={seed}',
      f'EVAL_SPLIT={split!r}',
      *args.gin_bindings,
      *(f'{name}={value}' for name, value in values.items()),
  ]
  command = [
      sys.executable,
      '-m',
      'moe_peft.train',
      *(f'--gin_file={name}' for name in (file, *args.gin_file)),
      f'--gin_search_paths={args.gin_search_paths}',
      *(f'--gin.{binding}' for binding in bindings),
  ]
  run_dir.mkdir(parents=True, exist_ok=True)
  log = run_dir / 'log.txt'
  with log.open('a', encoding='utf-8') as stream:
    status = subprocess.run(
        command, stdout=stream, stderr=subprocess.STDOUT, check=False
    ).returncode
  if status:
    last = log.read_text(encoding='utf-8').strip().splitlines()[-2:]
    raise errors.UserError(
        f'{run_dir} ended with status {status}: '
        f'{" ".join(last)} See {log}; run the study again to continue.'
    )


def _write_tables(
    files: Sequence[Path],
    seeds: Sequence[int],
    tuned: Mapping[Path, Values],
    args: argparse.Namespace,
) -> None:
  """Writes what is finished so far."""
  rows = []
  for file in files:
    for seed in seeds:
      run_dir = _run_dir(args.out, file, seed)
      if _is_finished(run_dir):
        row = {'name': file.stem, 'seed': seed, **_read_run(run_dir)}
        rows.append(row | ({'tuned': tuned[file]} if tuned[file] else {}))
  (args.out / 'results.json').write_text(
      json.dumps(rows, indent=1) + '\n', encoding='utf-8'
  )
  (args.out / 'table.md').write_text(
      table(rows, args.reference), encoding='utf-8'
  )


def _is_finished(run_dir: Path) -> bool:
  return (run_dir / 'run.json').exists()  # The last thing a run writes.


def _read_run(run_dir: Path) -> dict[str, Any]:
  run = json.loads((run_dir / 'run.json').read_text(encoding='utf-8'))
  results = json.loads(
      (run_dir / 'results.json').read_text(encoding='utf-8')
  )
  metric = results['primary_metric']
  value = lambda task, column: results['tasks'][task][metric[task]][column]
  return {
      'trainable': run['num_params_trainable'],
      'total': run['num_params_total'],
      'steps': run['steps'],
      'seconds': run['seconds'],
      'seconds_per_step': _seconds_per_step(run_dir),
      'peak_memory_bytes': run['peak_memory_bytes'],
      'split': results['split'],
      'base': {task: value(task, 'base') for task in metric},
      'adapted': {task: value(task, 'adapted') for task in metric},
  }


def _seconds_per_step(run_dir: Path) -> float:
  """Median over the logged periods, so that compilation does not count."""
  lines = (run_dir / 'metrics' / 'train.jsonl').read_text(encoding='utf-8')
  rows = [json.loads(line) for line in lines.splitlines()]
  return statistics.median(1 / row['steps_per_second'] for row in rows)


def table(
    rows: Sequence[dict[str, Any]], reference: Optional[str] = None
) -> str:
  """A Markdown table: one line a method, mean ± standard deviation.

  Args:
    rows: `name`, `seed`, `trainable`, and by task `base` and `adapted`, in
      percent; `tuned` where values were chosen.
    reference: Name of the row to which time and memory are ratios, of the
      rows' `seconds_per_step` and `peak_memory_bytes`.
  """
  if not rows:
    return ''
  tasks = list(rows[0]['adapted'])
  runs = {
      name: [row for row in rows if row['name'] == name]
      for name in dict.fromkeys(row['name'] for row in rows)
  }
  costs = {
      'step': 'seconds_per_step', 'memory': 'peak_memory_bytes'
  } if reference in runs else {}
  of_reference = {key: _median(runs.get(reference), key)
                  for key in costs.values()}
  tuned = any('tuned' in row for row in rows)
  base = rows[0]['base']
  lines = [
      ['method', 'trainable', *(['tuned'] if tuned else []), 'seeds', *tasks,
       'mean', *costs],
      ['---', *['--:'] * (3 + tuned + len(tasks) + len(costs))],
      ['base', '0', *([''] if tuned else []), '',
       *(f'{base[task]:.1f}' for task in tasks),
       f'{statistics.fmean(base.values()):.1f}', *[''] * len(costs)],
  ]
  for name, seeds in runs.items():
    means = [statistics.fmean(row['adapted'].values()) for row in seeds]
    lines.append([
        name,
        f'{seeds[0]["trainable"]:,}',
        *([_text(seeds[0].get('tuned', {}))] if tuned else []),
        str(len(seeds)),
        *(_cell([row['adapted'][task] for row in seeds]) for task in tasks),
        _cell(means),
        *(f'{_median(seeds, key) / of_reference[key]:.2f}'
          for key in costs.values()),
    ])
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _median(rows: Optional[Sequence[dict[str, Any]]], key: str) -> float:
  return statistics.median(row[key] for row in rows)


def _cell(values: Sequence[float]) -> str:
  if len(values) == 1:
    return f'{values[0]:.1f}'
  return f'{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}'


if __name__ == '__main__':
  command_line.run(main)
