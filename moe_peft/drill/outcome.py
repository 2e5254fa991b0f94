# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind, and where two of them differ."""

from collections.abc import Iterator, Mapping
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2
import tensorflow as tf

from moe_peft.core import trainable
from moe_peft.runs import metrics_files
from moe_peft.training import bases
from moe_peft.training import board_files

# What differs between any two runs: times.
_TIMES = ('tokens_per_second', 'steps_per_second')
_FILES = (
    'base_results.json', 'results.json', 'routing.json', 'similarity.json',
    'routing/*',
)
_ROWS = (metrics_files.TRAIN, metrics_files.EVALUATION, metrics_files.ROUTERS)


def read(run_dir: Path, step: int) -> dict[str, Any]:
  """Everything of a finished run that must not depend on interruptions.

  Args:
    run_dir: Its folder.
    step: The last one.

  Returns:
    By name: an array of the state, the bytes of a file as a hash, a list of
    rows, or a list of TensorBoard's points.
  """
  found = {}
  state = bases.read_orbax(run_dir / 'checkpoints' / str(step) / 'state')
  for name, value in trainable.flatten(state).items():
    array = np.asarray(value)
    # What is empty, such as a state of no optimizer, is no array.
    empty = array.dtype == object
    found[f'state {name}'] = repr(value) if empty else array.tobytes()
  for pattern in _FILES:
    for file in run_dir.glob(pattern):
      name = str(file.relative_to(run_dir))
      found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
  for name in _ROWS:
    rows, cut = metrics_files.read_lines(run_dir / name)
    found[name] = [_timeless(row) for row in rows], cut
  found['TensorBoard'] = sorted(_points(run_dir / board_files.FOLDER))
  return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
  """Names of what is not equal."""
  return sorted(
      name for name in one.keys() | other.keys()
      if name not in one or name not in other or one[name] != other[name]
  )


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in row.items() if name not in _TIMES}


def _points(folder: Path) -> Iterator[tuple[str, int, float]]:
  """Every point that the files hold: tag, step, value."""
  for file in folder.glob('*tfevents*'):
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
      event = event_pb2.Event.FromString(record)
      for value in event.summary.value:
        if value.tag not in _TIMES:
          number = np.float64(tf.make_ndarray(value.tensor))
          yield value.tag, event.step, number.tobytes()


def hashes(folder: Path) -> dict[str, str]:
  """SHA-256 of every file, by its path within a folder."""
  return {
      str(file.relative_to(folder)): hashlib.sha256(
          file.read_bytes()
      ).hexdigest()
      for file in sorted(folder.rglob('*')) if file.is_file()
  }
