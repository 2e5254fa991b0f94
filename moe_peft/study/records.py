# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of finished runs: `results.json`, `tuning.json`, `configs/`.

They are small and complete: whoever has them need not have the runs. A run that
they hold is not run again; delete its row to do so.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import statistics
from typing import Any

from moe_peft import errors

# Values of macros, as text: `{'LEARNING_RATE': '1e-3'}`.
Values = Mapping[str, str]
Row = dict[str, Any]


class Records:
  """Rows of runs and of tuning trials, kept in a folder."""

  def __init__(self, folder: Path):
    """Reads what the folder holds.

    Raises:
      errors.UserError: For a file that is no such record.
    """
    self.folder = folder
    self.rows: list[Row] = _read(folder / 'results.json', [])
    self.trials: dict[str, list[Row]] = _read(folder / 'tuning.json', {})

  def row(self, name: str, seed: int, values: Values) -> Row | None:
    """The row of a finished run, if there is one.

    Raises:
      errors.UserError: If it was run with other values than the best ones.
    """
    key = (name, seed)
    row = next((r for r in self.rows if (r['name'], r['seed']) == key), None)
    if row is not None and row.get('tuned', {}) != values:
      raise errors.UserError(
          f'{self.folder / "results.json"} has {name} with seed {seed} and the '
          f'values {row.get("tuned", {})}; the best of the grid are now '
          f'{values}. Delete the rows and runs of {name}, or name another '
          'folder with --out and --results.'
      )
    return row

  def add_row(self, row: Row) -> None:
    self.rows.append(row)
    _write(self.folder / 'results.json', self.rows)

  def trial(self, name: str, values: Values) -> Row | None:
    """A finished trial of a file, if there is one."""
    return next(
        (t for t in self.trials.get(name, []) if _values(t) == values), None
    )

  def add_trial(self, name: str, values: Values, score: float) -> None:
    """Notes a score of the validation split, in percent."""
    self.trials.setdefault(name, []).append({'validation': score, **values})
    _write(self.folder / 'tuning.json', self.trials)

  def best(self, name: str, tried: Sequence[Values]) -> Values:
    """The best of the values that were tried, the first of equals."""
    scores = [self.trial(name, values)['validation'] for values in tried]
    return tried[scores.index(max(scores))]


def check_config(path: Path, config: Mapping[str, str]) -> None:
  """Notes the macros of an experiment, and compares them the next time.

  Args:
    path: The JSON file that holds them.
    config: Text of the macros. Those of one side only are not compared: a new
      macro whose default changes nothing makes no run invalid.

  Raises:
    errors.UserError: If a macro has another value than it had.
  """
  known = _read(path, {})
  for name in config:
    if known.get(name, config[name]) != config[name]:
      raise errors.UserError(
          f'{path} is of {name} = {known[name]}, now it is {config[name]}: '
          'these are not the same runs. Name another folder with --out and '
          '--results.'
      )
  _write(path, {**known, **config})


def _values(trial: Row) -> Values:
  return {k: v for k, v in trial.items() if k != 'validation'}


def _read(path: Path, empty: Any) -> Any:
  if not path.exists():
    return empty
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error
  if not isinstance(content, type(empty)):
    raise errors.UserError(
        f'{path} is no record of a study; name another folder with --results.'
    )
  return content


def _write(path: Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  partial.replace(path)


def is_finished(run_dir: Path) -> bool:
  """Whether a run has ended: `run.json` is the last thing it writes."""
  return (run_dir / 'run.json').exists()


def seed(run_dir: Path) -> int | None:
  """The seed of a finished run; None if there is none."""
  if not is_finished(run_dir):
    return None
  return json.loads((run_dir / 'run.json').read_text(encoding='utf-8'))['seed']


def read_run(run_dir: Path) -> Row:
  """What a study keeps of a finished run."""
  run = json.loads((run_dir / 'run.json').read_text(encoding='utf-8'))
  results = json.loads(
      (run_dir / 'results.json').read_text(encoding='utf-8')
  )
  metric = results['primary_metric']
  value = lambda task, column: results['tasks'][task][metric[task]][column]
  constant = {
      task: values[metric[task]]
      for task, values in results.get('constant_answer', {}).items()
      if metric[task] in values
  }
  return {
      'trainable': run['num_params_trainable'],
      'total': run['num_params_total'],
      'steps': run['steps'],
      'device': run['device'],
      'seconds': run['seconds'],
      'seconds_per_step': _seconds_per_step(run_dir),
      'peak_memory_bytes': run['peak_memory_bytes'],
      'split': results['split'],
      'held_out': run['held_out_tasks'],
      **({'constant': constant} if constant else {}),  # Not of older runs.
      'base': {task: value(task, 'base') for task in metric},
      'adapted': {task: value(task, 'adapted') for task in metric},
  }


def score(row: Row) -> float:
  """Mean over the tasks that were trained on; held-out ones do not tune."""
  return statistics.fmean(
      value
      for task, value in row['adapted'].items()
      if task not in row['held_out']
  )


def _seconds_per_step(run_dir: Path) -> float:
  """Median over the logged periods, so that compilation does not count."""
  lines = (run_dir / 'metrics' / 'train.jsonl').read_text(encoding='utf-8')
  rows = [json.loads(line) for line in lines.splitlines()]
  return statistics.median(1 / row['steps_per_second'] for row in rows)
