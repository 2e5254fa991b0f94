# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files of a run that is resumed."""

import os
from pathlib import Path

from tensorboard.compat.proto import event_pb2
import tensorflow as tf

FOLDER = 'tensorboard'


def drop_points(folder: Path, last_step: int) -> None:
  """Removes the points that a resumed run makes anew.

  Files without such points stay as they are. What a kill has cut is dropped
  too, so every file can be read to its end.

  Args:
    folder: Where the files lie; it may be absent.
    last_step: Points of later steps are removed.

  Raises:
    OSError: A file cannot be replaced; it stays as it was.
    tensorflow.errors.OpError: A file cannot be read, or copied.
  """
  partial = folder / 'kept.partial'  # TensorBoard reads no such name.
  for file in sorted(folder.glob('*tfevents*')):
    if not _copy(file, partial, last_step):
      os.replace(partial, file)
  partial.unlink(missing_ok=True)


def _copy(file: Path, copy: Path, last_step: int) -> bool:
  """Copies the records that stay; returns whether these are all."""
  all_stay = True
  with tf.io.TFRecordWriter(str(copy)) as writer:
    try:
      for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        if event_pb2.Event.FromString(record).step <= last_step:
          writer.write(record)
        else:
          all_stay = False
    except tf.errors.DataLossError:
      all_stay = False
  return all_stay
