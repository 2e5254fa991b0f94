# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the metrics of training go: JSON lines and TensorBoard."""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
from pathlib import Path
import resource
import sys
import time
from typing import Any

from clu import metric_writers
from clu import metrics as clu_metrics
import flax
import jax
import numpy as np
import tensorflow as tf

from moe_peft import errors
from moe_peft.routers import router_log
from moe_peft.runs import metrics_files
from moe_peft.training import board_files
from moe_peft.training import progress as progress_lib
from moe_peft.training import writers

# A nested dictionary of CLU metrics; `routing` and `router_grads` have those of
# each router.
Metrics = Mapping[str, Any]


@flax.struct.dataclass
class Skipped(clu_metrics.Metric):
  """How many steps were skipped since something was not finite.

  Attributes:
    steps: `<int32>[]`, number of steps.
    total: `<int32>[]`, how many of them were skipped.
    in_a_row: `<int32>[]`, how many of the last ones, without one in between.
  """

  steps: jax.Array
  total: jax.Array
  in_a_row: jax.Array

  def merge(self, other: 'Skipped') -> 'Skipped':
    through = other.in_a_row == other.steps
    return Skipped(
        self.steps + other.steps,
        self.total + other.total,
        other.in_a_row + through * self.in_a_row,
    )

  def compute(self) -> jax.Array:
    return self.total


class TrainLog:
  """Turns metrics on the device into rows, without stopping the loop.

  The metrics are fetched in a thread. The loop waits only if it is a whole
  logging period ahead of the device. The sums of a period that has begun are
  part of a checkpoint (`begun`), so a resumed run writes the rows of one that
  was never stopped.

  Attributes:
    step: The last step with a row of this process; 0 before.
    skipped_in_a_row: How many steps up to it were skipped, one after another.
  """

  def __init__(self, run_dir: Path, first_step: int,
               progress: progress_lib.Progress,
               learning_rate: Callable[[int], Any],
               begun: Mapping[str, Any] | None = None):
    """Opens the files of a run.

    Args:
      run_dir: The folder of the run.
      first_step: The step of the checkpoint from which it continues.
      progress: Shows the newest row.
      learning_rate: Schedule.
      begun: What `begun` returned when the checkpoint was saved.
    """
    self._begun = dict(begun or {})
    self.step, self.skipped_in_a_row = 0, 0
    self._sums: Metrics | None = None
    self._folder = run_dir / 'metrics'
    # A run that ends within a period has a row of a part of it.
    first_step -= self._begun.get('steps', 0)
    with _disk_errors(self._folder):
      rows, self._routers = (
          metrics_files.JsonLines(run_dir / name, first_step)
          for name in (metrics_files.TRAIN, metrics_files.ROUTERS)
      )
      board_files.drop_points(run_dir / board_files.FOLDER, first_step)
    board = writers.BoardWriter(str(run_dir / board_files.FOLDER))
    self._writer = metric_writers.MultiWriter(
        [writers.RowWriter(rows), board, writers.ProgressWriter(progress)]
    )
    self._router_log = router_log.RouterLog(
        self._routers.write, board, progress.note
    )
    self._learning_rate = learning_rate
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._pending: concurrent.futures.Future | None = None
    self._time = time.monotonic()

  def start_clock(self) -> None:
    """Begins a period: what came before is not counted in tokens/s."""
    self.wait()
    self._time = time.monotonic() - self._begun.get('seconds', 0.0)

  @contextlib.contextmanager
  def stopped_clock(self) -> Iterator[None]:
    """What happens within, in the middle of a period, is not counted."""
    self.wait()
    jax.block_until_ready(self._sums)  # The device may be steps behind.
    stopped = time.monotonic()
    yield
    self._time += time.monotonic() - stopped

  def add(self, metrics: Metrics) -> None:
    """Adds the metrics of a step to those since the last row."""
    if self._begun:
      begun, self._begun = self._begun, {}
      self._sums = _from_json(begun['sums'], metrics)
      if self._sums is None:  # Its steps do not count, nor does its time.
        self._time += begun['seconds']
    self._sums = merge(self._sums, metrics) if self._sums else metrics

  def write(self, step: int, whole: bool = True) -> None:
    """Writes the row of the steps since the last one.

    Args:
      step: The last of them.
      whole: Whether the next row begins behind it.
    """
    self.wait()
    self._pending = self._thread.submit(self._write, step, self._sums, whole)
    if whole:
      self._sums = None

  def begun(self) -> dict[str, Any]:
    """What is known of the steps since the last row, as JSON."""
    if self._sums is None:
      return {}
    return {
        'steps': int(self._sums['skipped'].steps),
        'seconds': time.monotonic() - self._time,
        'sums': {
            jax.tree_util.keystr(path): x.tolist()
            for path, x in jax.tree_util.tree_leaves_with_path(
                jax.device_get(self._sums)
            )
        },
    }

  def flush(self) -> None:
    """Waits until the rows and points of all periods are in their files."""
    self.wait()
    with _disk_errors(self._folder):
      self._writer.flush()

  def wait(self) -> None:
    """Waits for what was submitted, and raises its error if it failed."""
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    with _disk_errors(self._folder):
      pending.result()

  def _write(self, step: int, metrics: Metrics, whole: bool) -> None:
    metrics = jax.device_get(metrics)
    now = time.monotonic()
    seconds = now - self._time
    if whole:  # Else a run of more steps counts this time once more.
      self._time = now
    with np.errstate(invalid='ignore'):  # A period may have no tokens.
      means = jax.tree.map(
          lambda metric: metric.compute(), metrics, is_leaf=_is_metric
      )
    routing, gradients = means.pop('routing'), means.pop('router_grads')
    skipped = metrics['skipped']
    self._writer.write_scalars(step, {
        **{name: float(x) for name, x in means.items()},
        'learning_rate': float(np.asarray(self._learning_rate(step - 1))),
        'tokens_per_second': float(metrics['tokens'].total) / seconds,
        'steps_per_second': float(skipped.steps) / seconds,
    })
    self._router_log.log(step, routing, gradients)
    before = self.skipped_in_a_row if skipped.in_a_row == skipped.steps else 0
    self.skipped_in_a_row = int(skipped.in_a_row) + before
    self.step = step

  def close(self) -> None:
    self.wait()
    self._thread.shutdown()
    self._routers.close()
    self._writer.close()


@jax.jit
def merge(metrics: Metrics, more: Metrics) -> Metrics:
  """The metrics of all steps of both, merged on the device."""
  return jax.tree.map(
      lambda one, other: one.merge(other), metrics, more, is_leaf=_is_metric
  )


def _from_json(sums: Mapping[str, Any], like: Metrics) -> Metrics | None:
  """What `TrainLog.begun` wrote; None if it was of other metrics."""
  paths, tree = jax.tree_util.tree_flatten_with_path(like)
  names = [jax.tree_util.keystr(path) for path, _ in paths]
  if sums.keys() != set(names):
    return None
  return jax.tree.unflatten(tree, [
      np.asarray(sums[name], x.dtype)
      for name, (_, x) in zip(names, paths, strict=True)
  ])


def _is_metric(x: Any) -> bool:
  return isinstance(x, clu_metrics.Metric)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    said = getattr(error, 'strerror', None) or str(error)[:200]
    raise errors.UserError(
        f'The metrics cannot be saved: {said}.',
        where=folder,
        remedy='Free some space and run the same command again; it continues '
        'from the last checkpoint.',
    ) from error


def peak_memory_bytes() -> int:
  """Most memory used so far: of the first device, or, on CPUs, the process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak
