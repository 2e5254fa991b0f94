# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of finished runs: `results.json`, `tuning.json`, `configs/`.

They are small and complete: whoever has them need not have the runs. A run that
they hold is not run again; delete its row to do so.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from moe_peft import atomic
from moe_peft import errors
from moe_peft.runs import json_file
from moe_peft.runs import row_scores

# Values of macros, as text: `{'LEARNING_RATE': '1e-3'}`.
Values = Mapping[str, str]
Row = dict[str, Any]
# What a row has of a run with its routing replaced.
CONTROLS = 'controls'


class Records:
  """Rows of runs and of tuning trials, kept in a folder."""

  def __init__(self, folder: Path):
    """Reads what the folder holds.

    Raises:
      errors.UserError: For a file that is no such record.
    """
    self.folder = folder
    self._results = folder / 'results.json'
    self._tuning = folder / 'tuning.json'
    rows = json_file.Fields(self._results, {'rows': load(self._results, [])})
    self.rows: list[Row] = []
    for fields in rows.objects('rows'):
      self._append(_row(fields))
    trials = json_file.Fields(self._tuning, load(self._tuning, {}))
    self.trials: dict[str, list[Row]] = {}
    for name in trials.value:
      for fields in trials.objects(name):
        # A run that is not finite has null, which is a score too: the worst.
        default = (math.nan,) if 'validation' in fields.value else ()
        score = fields.get('validation', float, *default)
        self.trials.setdefault(name, []).append(
            {**fields.value, 'validation': score}
        )

  def row(self, name: str, seed: int, values: Values) -> Row | None:
    """The row of a finished run, if there is one.

    Raises:
      errors.UserError: If it was run with other values than the best ones.
    """
    key = (name, seed)
    row = next((r for r in self.rows if (r['name'], r['seed']) == key), None)
    if row is not None and row.get('tuned', {}) != values:
      raise errors.UserError(
          f'The row of {name} with seed {seed} has the values '
          f'{row.get("tuned", {})}, and the best of the grid are now {values}.',
          self._results,
          f'Delete the rows and runs of {name}, or name another folder with '
          '--out and --results.',
      )
    return row

  def add_row(self, row: Row) -> None:
    """Notes a run that has ended."""
    self._append(row)
    _write(self._results, self.rows)

  def add_controls(
      self, name: str, seed: int, scores: Mapping[str, Mapping[str, float]]
  ) -> None:
    """Notes the scores of a run with its routing replaced.

    Args:
      name: Name of its file.
      seed: Its seed.
      scores: By control, the score of each task.
    """
    (row,) = (r for r in self.rows if (r['name'], r['seed']) == (name, seed))
    row[CONTROLS] = scores
    _write(self._results, self.rows)

  def _append(self, row: Row) -> None:
    key = row['name'], row['seed']
    run = '{} with seed {}'.format(*key)
    if key in [(x['name'], x['seed']) for x in self.rows]:
      raise json_file.damaged(self._results, f'Two rows are of {run}.')
    self.rows.append(row)
    for column in ('base', 'adapted'):
      if row[column].keys() != self.rows[0]['adapted'].keys():
        raise json_file.damaged(
            self._results,
            f'{run} has other tasks than the first row in "{column}".',
        )

  def trial(
      self,
      name: str,
      values: Values,
      steps: int | None = None,
      seed: int | None = None,
  ) -> Row | None:
    """A finished trial of a file, if there is one.

    Args:
      name: Name of the file.
      values: What was tried.
      steps: Training steps, if tuning chooses them.
      seed: If tuning has seeds of its own.
    """
    wanted = _trial(values, steps, seed)
    trials = self.trials.get(name, [])
    return next((trial for trial in trials if trial_key(trial) == wanted), None)

  def add_trial(
      self,
      name: str,
      values: Values,
      score: float,
      steps: int | None = None,
      seed: int | None = None,
  ) -> None:
    """Notes a score of the validation split, see `run_rows.score`."""
    self.trials.setdefault(name, []).append(
        {'validation': score, **_trial(values, steps, seed)}
    )
    _write(self._tuning, self.trials)

  def extend(
      self,
      rows: Sequence[Row],
      trials: Mapping[str, Sequence[Row]],
      controls: Sequence[tuple[Row, Any]],
  ) -> None:
    """Notes what another machine has recorded.

    Args:
      rows: Rows of runs that are not known.
      trials: Trials that are not known, by name of the file.
      controls: Known rows, and their scores with the routing replaced.
    """
    for row in rows:
      self._append(row)
    for row, scores in controls:
      row[CONTROLS] = scores
    for name, more in trials.items():
      self.trials.setdefault(name, []).extend(more)
    _write(self._results, self.rows)
    _write(self._tuning, self.trials)


def trial_key(trial: Row) -> Row:
  """What a trial of a file is known by: all but its score."""
  return {k: v for k, v in trial.items() if k != 'validation'}


def _trial(values: Values, steps: int | None, seed: int | None) -> Row:
  """What a trial is known by; older ones have neither steps nor a seed."""
  own = {'TRAIN_STEPS': steps, 'SEED': seed}
  return {**values, **{k: v for k, v in own.items() if v is not None}}


def check_macros(path: Path, macros: Mapping[str, str]) -> None:
  """Notes the macros of a configuration, and compares them the next time.

  Args:
    path: The JSON file that holds them.
    macros: Their text. Those of one side only are not compared: a new macro
      whose default changes nothing makes no run invalid.

  Raises:
    errors.UserError: If a macro has another value than it had.
  """
  known = json_file.Fields(path, {'macros': load(path, {})}).mapping(
      'macros', str
  )
  for name, value in macros.items():
    if known.get(name, value) != value:
      raise errors.UserError(
          f'The runs that are there have {name} = {known[name]}, and now it is '
          f'{value}.', path,
          'Name another folder with --out and --results.',
      )
  _write(path, {**known, **macros})


def text(values: Values) -> str:
  """Chosen values in one line."""
  return ','.join(f'{name}={value}' for name, value in values.items())


def _row(fields: json_file.Fields) -> Row:
  """A row that has what tables are made of; older ones lack `held_out`."""
  for name, kind in (('name', str), ('seed', int), ('trainable', int)):
    fields.get(name, kind)
  for name in ('seconds_per_step', 'peak_memory_bytes'):
    fields.get(name, float, None)
  fields.get('device', str, None)
  fields.get('base', dict)
  fields.get('adapted', dict)
  fields.mapping('tuned', str)
  fields.texts('lower_is_better')
  columns = {
      name: fields.mapping(name, float)
      for name in ('base', 'adapted', 'constant')
      if name in fields.value
  }
  row_scores.read(fields, columns['adapted'])
  for control, scores in fields.nested(CONTROLS, float).items():
    if scores.keys() != columns['adapted'].keys():
      raise fields.error(CONTROLS, f'must have each task ({control})')
  return fields.value | {'held_out': list(fields.texts('held_out'))} | columns


def load(path: Path, empty: Any) -> Any:
  """The value of a JSON file; `empty` where there is none."""
  if not path.exists():
    return empty
  try:
    return json_file.loads(json_file.read_text(path))
  except ValueError as error:
    raise json_file.damaged(path, f'It is no JSON ({error}).') from error


def _write(path: Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write(path, json_file.dumps(content, indent=1) + '\n')
