# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of finished runs: `results.json`, `tuning.json`, `configs/`.

They are small and complete: whoever has them need not have the runs. A run that
they hold is not run again; delete its row to do so.
"""

from collections.abc import Collection, Mapping
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
    rows = json_file.Fields(self._results, {'rows': _load(self._results, [])})
    self.rows: list[Row] = []
    for fields in rows.objects('rows'):
      self._append(_row(fields))
    trials = json_file.Fields(self._tuning, _load(self._tuning, {}))
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
    return next((trial for trial in trials if _key(trial) == wanted), None)

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

  def merge(self, folder: Path, tuned: Mapping[str, Collection[str]]) -> int:
    """Adds what another machine has recorded.

    Args:
      folder: Holds `results.json`, `tuning.json`, `configs`.
      tuned: Names of the files whose rows are wanted, with the macros that
        they tune. Rows whose values were found otherwise are left out.

    Returns:
      How many rows are new.

    Raises:
      errors.UserError: If they were run with other macros or tuned values, or
        are other rows or trials of the same runs.
    """
    other = Records(folder)
    for file in sorted((folder / 'configs').glob('*.json')):
      if file.stem in tuned:
        check_macros(
            self.folder / 'configs' / file.name,
            {k: v for k, v in _load(file, {}).items() if k != 'ADAPTER_RULES'},
        )
    rows = {(row['name'], row['seed']): row for row in self.rows}
    new, controlled = [], []
    for row in other.rows:
      wanted = tuned.get(row['name'])
      if wanted is None or set(row.get('tuned', ())) != set(wanted):
        continue
      known = rows.get((row['name'], row['seed']))
      if known is None:
        self._check_tuned(folder, row)
        new.append(row)
        continue
      either = {k: x[k] for x in (row, known) for k in (CONTROLS,) if k in x}
      if not _is_same(either | known, either | row):
        raise self._differ(folder, f'row of {row["name"]}', row['seed'])
      controlled.append((known, either))
    more = {
        name: self._new_trials(folder, name, trials)
        for name, trials in other.trials.items() if name in tuned
    }
    for row in new:
      self._append(row)
    for known, either in controlled:
      known.update(either)
    for name, trials in more.items():
      self.trials.setdefault(name, []).extend(trials)
    _write(self._results, self.rows)
    _write(self._tuning, self.trials)
    return len(new)

  def _check_tuned(self, folder: Path, row: Row) -> None:
    """Raises errors.UserError for values unlike those of the other seeds."""
    for other in self.rows:
      ours, theirs = (x.get('tuned', {}) for x in (other, row))
      if other['name'] == row['name'] and ours != theirs:
        raise errors.UserError(
            f'The rows of {row["name"]} in {self.folder} have the values '
            f'{text(ours)}, and those in {folder} {text(theirs)}.', folder,
            'Tune in one place, and give --merge its results before the other '
            'machine trains seeds. Delete the rows of one of the two.',
        )

  def _new_trials(self, folder, name, trials) -> list[Row]:
    """Trials of another folder that this one does not have."""
    new = []
    for trial in trials:
      key = _key(trial)
      known = next((x for x in self.trials.get(name, ()) if _key(x) == key), {})
      if not known:
        new.append(trial)
      elif not _is_same(known, trial):
        kept = {k: v for k, v in key.items() if k != 'SEED'}
        raise self._differ(
            folder, f'trial of {name} ({text(kept)})', trial.get('SEED')
        )
    return new

  def _differ(self, folder, what, seed) -> errors.UserError:
    of_seed = '' if seed is None else f' with seed {seed}'
    return errors.UserError(
        f'{folder} and {self.folder} both have a {what}{of_seed}, and they '
        'differ.', folder, 'Delete one of the two.',
    )


def _is_same(one: Row, other: Row) -> bool:
  """Whether rows hold the same; in JSON, what is not finite is equal too."""
  one, other = (json_file.loads(json_file.dumps(x)) for x in (one, other))
  return one == other


def _key(trial: Row) -> Row:
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
  known = json_file.Fields(path, {'macros': _load(path, {})}).mapping(
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


def _load(path: Path, empty: Any) -> Any:
  if not path.exists():
    return empty
  try:
    return json_file.loads(json_file.read_text(path))
  except ValueError as error:
    raise json_file.damaged(path, f'It is no JSON ({error}).') from error


def _write(path: Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write(path, json_file.dumps(content, indent=1) + '\n')
