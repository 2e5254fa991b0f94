# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which data a run reads, and where its rows stand."""

from collections.abc import Mapping, Sequence
import hashlib
import itertools
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import cache
from moe_peft.data import catalog
from moe_peft.data import registration

# Beginnings of names: which file is of which split, what was made of the rows
# that are read, and how often a mixture draws from a task.
_SPLITS_OF, _ROWS_OF, _SHARE_OF = _KINDS = (
    'splits of ', 'rows of ', 'share of '
)


def identities(name: str) -> dict[str, str]:
  """What the rows of a task or mixture are, to tell whether they change.

  Returns:
    SHA-256 of the user's files by path, and of their splits by the task; of
    rows by task, of what a cache says of itself by its folder; the version of a
    TFDS data set by its name; the shares of a mixture's tasks. Tasks that were
    not registered by this package have none of their own.

  Raises:
    errors.UserError: Unknown name.
  """
  source = catalog.get_task_or_mixture(name)
  of_tasks = {task: _of_task(task) for task in seqio.get_subtasks(source)}
  found = {}
  for of_task in of_tasks.values():
    found |= of_task
  if isinstance(source, seqio.Mixture) and len(of_tasks) > 1:
    found |= _shares(source, of_tasks)
  return found


def _of_task(task: seqio.Task) -> dict[str, str]:
  if task.requires_caching:
    return {str(task.cache_dir): cache.identity(Path(task.cache_dir))}
  if task.name in registration.RECORDS:
    return _of_record(registration.RECORDS[task.name])
  if isinstance(task.source, seqio.TfdsDataSource):
    info = task.source.tfds_dataset.info
    return {info.name: str(info.version), **_of_settings(task.name)}
  return {}


def _shares(
    source: seqio.Mixture, of_tasks: Mapping[seqio.Task, Mapping[str, str]]
) -> dict[str, str]:
  """How often a mixture draws from each task."""
  rates = {task: source.get_rate(task) for task in of_tasks}
  total = sum(rates.values()) or 1.0
  # Of what the share is: those that change places are others.
  data = {
      task: _of(sorted(own.values()))[:12] if own else task.name
      for task, own in of_tasks.items()
  }
  return {
      _SHARE_OF + task.name: f'{100 * rate / total:.4g} % of {data[task]}'
      for task, rate in rates.items()
  }


def _of_settings(task: str) -> dict[str, str]:
  """Of what a TFDS task of this package takes from its data set."""
  settings = registration.settings(task)
  if not settings:
    return {}
  splits = sorted((settings['splits'] or {}).items())
  read = [splits, settings['inputs_key'], settings['targets_key']]
  return {_ROWS_OF + task: _of(read)}


def _of_record(record: registration.TaskRecord) -> dict[str, str]:
  """Of every file, or of the rows of a task without files.

  And of which file is of which split: a held-out one may come to be trained on;
  and of the rows that columns, templates and turns make of the files.
  """
  if record.files:
    found = {x: _of_file(x) for x in itertools.chain(*record.files.values())}
    of_splits = [
        (split, sorted(found[x] for x in files))
        for split, files in sorted(record.files.items())
    ]
    return found | {
        _SPLITS_OF + record.name: _of(of_splits),
        _ROWS_OF + record.name: record.content,
    }
  rows = [
      (split, row.inputs, row.targets, *row.choices)
      for split, of_split in sorted(record.rows_fn().items())
      for row in of_split
  ]
  return {record.name: _of(rows)}


def _of(value: Sequence[Any]) -> str:
  return hashlib.sha256(repr(value).encode()).hexdigest()


def _of_file(file: str) -> str:
  """Of a file on a disk or in a bucket."""
  with tf.io.gfile.GFile(file, 'rb') as opened:
    return hashlib.sha256(opened.read()).hexdigest()


def check_identities(
    step: int, then: Mapping[str, str] | None, now: Mapping[str, str]
) -> None:
  """Checks that a run goes on with the data that it has seen.

  Files that have other names and the same content are the same.

  Args:
    step: The step of its checkpoint.
    then: `identities` when it was saved; None if the version that saved it
      knew of none.
    now: `identities`.

  Raises:
    errors.UserError: The data have changed.
  """
  if then is None:
    return
  # Older versions did not tell everything.
  untold = tuple(x for x in _KINDS if not any(y.startswith(x) for y in then))
  now = {k: v for k, v in now.items() if not k.startswith(untold)}
  if sorted(then.values()) == sorted(now.values()):
    return
  differ = [x for x in (*now, *then) if then.get(x) != now.get(x)]
  moved = {None, *then.values()} & {None, *now.values()}
  changed = next(
      (x for x in differ if not {then.get(x), now.get(x)} <= moved), differ[0]
  )
  was, now = (_shown(x.get(changed, 'absent')) for x in (then, now))
  raise errors.UserError(
      f'The data have changed since step {step}: {changed} was {was} and now '
      f'is {now} (SHA-256, a version, or a share).',
      where=changed,
      remedy='Put back what it was, or choose another MODEL_DIR; '
      '--gin.ALLOW_CHANGED_DATA=True goes on with the data of now.',
  )


def _shown(value: str) -> str:
  """A value as messages have it: the beginning of a hash."""
  return value[:12] if len(value) == hashlib.sha256().digest_size * 2 else value


def places(name: str, texts: Sequence[str]) -> list[str]:
  """Where rows of training stand: file and line, or task and number.

  Args:
    name: Task or mixture.
    texts: Inputs and targets of rows, one after the other; white space does
      not count, since tokenizers change it.

  Returns:
    The places of those that are known: rows of tasks of this package that are
    in memory, and that no preprocessing has changed.
  """
  known = {}
  for task in catalog.task_names(name):
    record = registration.RECORDS.get(task)
    rows = record.rows_fn().get('train', ()) if record else ()
    for number, row in enumerate(rows, start=1):
      place = row.place or f'{task}, training row {number}'
      known.setdefault(_packed(record.text(row)), place)
  return [known[text] for text in map(_packed, texts) if text in known]


def _packed(text: str) -> str:
  return ''.join(text.split())
