# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files of a resumed run hold every point once."""

import contextlib

from clu import metric_writers
from tensorboard.compat.proto import event_pb2
import tensorflow as tf

from moe_peft.training import board_files


def write(folder, *steps):
  """Writes a file with a point for each step."""
  with contextlib.closing(
      metric_writers.SummaryWriter(str(folder))
  ) as writer:
    for step in steps:
      writer.write_scalars(step, {'loss': float(step)})


def points(folder):
  """Steps of the points in all files, which must be whole."""
  return sorted(
      event.step
      for file in folder.glob('*tfevents*')
      for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
      if (event := event_pb2.Event.FromString(record)).summary.value
  )


def test_points_of_later_steps_go(tmp_path):
  write(tmp_path, 1, 2, 3)
  (first,) = tmp_path.iterdir()
  before = first.read_bytes(), first.stat().st_mtime_ns
  write(tmp_path, 4, 5, 6)
  board_files.drop_points(tmp_path, 4)
  assert points(tmp_path) == [1, 2, 3, 4]
  assert (first.read_bytes(), first.stat().st_mtime_ns) == before
  assert len(list(tmp_path.iterdir())) == 2


def test_half_a_point_goes(tmp_path):
  write(tmp_path, 1, 2)
  (file,) = tmp_path.iterdir()
  file.write_bytes(file.read_bytes()[:-3])
  board_files.drop_points(tmp_path, 9)
  assert points(tmp_path) == [1]
  file.write_bytes(b'')
  board_files.drop_points(tmp_path, 9)
  assert points(tmp_path) == []


def test_a_new_run_has_no_files(tmp_path):
  board_files.drop_points(tmp_path / 'none', 0)
  assert not list(tmp_path.iterdir())
