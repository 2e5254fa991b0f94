# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adds the rows that another machine has run of the same studies."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
import sys
from typing import Any

from moe_peft import errors
from moe_peft.runs import json_file
from moe_peft.study import records as records_lib

Records = records_lib.Records


def merge(studies: Sequence[Any], folder: Path) -> None:
  """Adds the rows of another results folder, laid out as these are or flat.

  Args:
    studies: Each has `inside`, its place in the folder, `records`, and
      `tuned()`, what of each configuration is tuned.
    folder: The other folder.

  Raises:
    errors.UserError: If it has no row of these studies, or rows that differ.
  """
  check(folder, [study.inside for study in studies])
  for study in studies:
    theirs = _theirs(folder, study.inside)
    new = add(study.records, theirs, study.tuned())
    print(f'{theirs}: {new} new rows', file=sys.stderr)


def share(study: Any, other: Any) -> None:
  """Takes the rows of arms that another folder has too, the same in all.

  Args:
    study: Has `configurations` and `records`.
    other: The same of the other folder.
  """
  alike = lambda c, o: (
      c.name == o.name and c.macros == o.macros
      and c.file.read_bytes() == o.file.read_bytes()
  )
  shared = {
      c.name: tuple(c.trials[0])
      for c in study.configurations for o in other.configurations
      if alike(c, o)
  }
  if other is not study and shared:
    add(study.records, other.records.folder, shared)


def add(
    ours: Records, folder: Path, tuned: Mapping[str, Collection[str]]
) -> int:
  """Adds what another machine has recorded of one study.

  Args:
    ours: What is known.
    folder: Holds `results.json`, `tuning.json`, `configs`.
    tuned: Names of the files whose rows are wanted, with the macros that they
      tune. Rows whose values were found otherwise are left out.

  Returns:
    How many rows are new.

  Raises:
    errors.UserError: If they were run with other macros or tuned values, or are
      other rows or trials of the same runs.
  """
  theirs = Records(folder)
  for file in sorted((folder / 'configs').glob('*.json')):
    if file.stem in tuned:
      macros = records_lib.load(file, {})
      macros.pop('ADAPTER_RULES', None)
      records_lib.check_macros(ours.folder / 'configs' / file.name, macros)
  known = {(row['name'], row['seed']): row for row in ours.rows}
  new, controls = [], []
  for row in theirs.rows:
    wanted = tuned.get(row['name'])
    if wanted is None or set(row.get('tuned', ())) != set(wanted):
      continue
    mine = known.get((row['name'], row['seed']))
    if mine is None:
      _check_tuned(ours, folder, row)
      new.append(row)
    elif scores := _shared_controls(ours, folder, mine, row):
      controls.append((mine, scores))
  trials = {
      name: _new_trials(ours, folder, name, found)
      for name, found in theirs.trials.items() if name in tuned
  }
  ours.extend(new, trials, controls)
  return len(new)


def _shared_controls(ours, folder, mine, row) -> Any:
  """The controls of a row that both have, of whom has them; None if neither.

  Raises:
    errors.UserError: If the rows differ in anything else.
  """
  name = records_lib.CONTROLS
  scores = mine.get(name, row.get(name))
  if not _is_same({name: scores, **mine}, {name: scores, **row}):
    raise _differ(ours, folder, f'row of {row["name"]}', row['seed'])
  return scores


def _check_tuned(ours: Records, folder: Path, row: records_lib.Row) -> None:
  """Raises errors.UserError for values unlike those of the other seeds."""
  for other in ours.rows:
    mine, theirs = (x.get('tuned', {}) for x in (other, row))
    if other['name'] == row['name'] and mine != theirs:
      raise errors.UserError(
          f'The rows of {row["name"]} in {ours.folder} have the values '
          f'{records_lib.text(mine)}, and those in {folder} '
          f'{records_lib.text(theirs)}.', folder,
          'Tune in one place, and give --merge its results before the other '
          'machine trains seeds. Delete the rows of one of the two.',
      )


def _new_trials(ours, folder, name, trials) -> list[records_lib.Row]:
  """Trials of another folder that are not known."""
  new = []
  for trial in trials:
    key = records_lib.trial_key(trial)
    known = [
        x for x in ours.trials.get(name, ())
        if records_lib.trial_key(x) == key
    ]
    if not known:
      new.append(trial)
    elif not _is_same(known[0], trial):
      kept = {k: v for k, v in key.items() if k != 'SEED'}
      raise _differ(
          ours, folder, f'trial of {name} ({records_lib.text(kept)})',
          trial.get('SEED'),
      )
  return new


def _differ(ours, folder, what, seed) -> errors.UserError:
  of_seed = '' if seed is None else f' with seed {seed}'
  return errors.UserError(
      f'{folder} and {ours.folder} both have a {what}{of_seed}, and they '
      'differ.', folder, 'Delete one of the two.',
  )


def _is_same(one: records_lib.Row, other: records_lib.Row) -> bool:
  """Whether rows hold the same; in JSON, what is not finite is equal too."""
  one, other = (json_file.loads(json_file.dumps(x)) for x in (one, other))
  return one == other


def check(folder: Path, insides: Iterable[str]) -> None:
  """Raises errors.UserError for a folder without rows, or with broken ones."""
  if not list(folder.rglob('results.json')):
    raise errors.UserError('The folder holds no rows of a study.', folder)
  for inside in insides:
    records_lib.Records(_theirs(folder, inside))


def _theirs(folder: Path, inside: str) -> Path:
  return folder / inside if (folder / inside).is_dir() else folder
