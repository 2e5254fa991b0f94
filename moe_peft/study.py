# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.study`: runs, resumes and tabulates experiments."""

import argparse
import json
from pathlib import Path
import statistics
import subprocess
import sys
from typing import Any, Optional, Sequence

from moe_peft import command_line
from moe_peft import errors

_DESCRIPTION = """\
Trains every gin file of a folder with every seed, scores each run on a split,
and writes OUT/results.json and OUT/table.md (mean and standard deviation over
seeds). What is finished is not run again: after an interruption, run the same
command again."""


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
  command_line.add_gin_flags(parser)
  args = parser.parse_args(argv)
  files = _gin_files(args.folder, args.only)
  seeds = _seeds(args.seeds)
  for number, (seed, file) in enumerate(
      [(seed, file) for seed in seeds for file in files], start=1
  ):
    print(f'[{number}/{len(files) * len(seeds)}] {file.stem} seed {seed}',
          file=sys.stderr, flush=True)
    _run_one(file, seed, args)
    _write_tables(files, seeds, args.out)
  print((args.out / 'table.md').read_text(encoding='utf-8'))
  return None


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


def _run_one(file: Path, seed: int, args: argparse.Namespace) -> None:
  """Trains and scores one run in a process of its own, or continues it."""
  run_dir = _run_dir(args.out, file, seed)
  if _is_finished(run_dir):
    return
  bindings = [
      f'MODEL_DIR={str(run_dir)!r}',
      f'SEED={seed}',
      f'EVAL_SPLIT={args.split!r}',
      *args.gin_bindings,
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
        f'{file.stem} with seed {seed} ended with status {status}: '
        f'{" ".join(last)} See {log}; run the study again to continue.'
    )


def _write_tables(
    files: Sequence[Path], seeds: Sequence[int], out: Path
) -> None:
  """Writes what is finished so far."""
  rows = [
      {'name': file.stem, 'seed': seed, **_read_run(run_dir)}
      for file in files
      for seed in seeds
      if _is_finished(run_dir := _run_dir(out, file, seed))
  ]
  (out / 'results.json').write_text(
      json.dumps(rows, indent=1) + '\n', encoding='utf-8'
  )
  (out / 'table.md').write_text(table(rows), encoding='utf-8')


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
      'split': results['split'],
      'base': {task: value(task, 'base') for task in metric},
      'adapted': {task: value(task, 'adapted') for task in metric},
  }


def table(rows: Sequence[dict[str, Any]]) -> str:
  """A Markdown table: one line a method, mean ± standard deviation.

  Args:
    rows: `name`, `seed`, `trainable`, and by task `base` and `adapted`, in
      percent.
  """
  if not rows:
    return ''
  tasks = list(rows[0]['adapted'])
  lines = [
      '| method | trainable | seeds | ' + ' | '.join(tasks) + ' | mean |',
      '|---|--:|--:|' + '--:|' * (len(tasks) + 1),
  ]
  base = rows[0]['base']
  cells = [f'{base[task]:.1f}' for task in tasks]
  mean = statistics.fmean(base.values())
  lines.append(f'| base | 0 | | {" | ".join(cells)} | {mean:.1f} |')
  for name in dict.fromkeys(row['name'] for row in rows):
    runs = [row for row in rows if row['name'] == name]
    cells = [_cell([run['adapted'][task] for run in runs]) for task in tasks]
    means = [statistics.fmean(run['adapted'].values()) for run in runs]
    lines.append(
        f'| {name} | {runs[0]["trainable"]:,} | {len(runs)} | '
        f'{" | ".join(cells)} | {_cell(means)} |'
    )
  return '\n'.join(lines) + '\n'


def _cell(values: Sequence[float]) -> str:
  if len(values) == 1:
    return f'{values[0]:.1f}'
  return f'{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}'


if __name__ == '__main__':
  command_line.run(main)
