# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a study keeps of a finished run: one row of its `results.json`."""

from collections.abc import Container, Mapping
import math
from pathlib import Path
import statistics
from typing import Any

from moe_peft.runs import json_file
from moe_peft.runs import metrics_files
from moe_peft.runs import results_file
from moe_peft.runs import run_file


def seed(run_dir: Path) -> int | None:
  """The seed of a finished run; None if there is none."""
  run = run_file.read(run_dir)
  return run and run.seed


def read(run_dir: Path) -> dict[str, Any]:
  """What a study keeps of a finished run.

  Raises:
    errors.UserError: A file of the run is missing or damaged.
  """
  run, results = run_file.read(run_dir), results_file.read(run_dir)
  if results is None:
    raise json_file.damaged(
        run_dir / results_file.FILE, 'The run has ended without this file.'
    )
  metric = results.primary_metric
  constant = {task: results.constant(task) for task in metric}
  measured = {k: v for k, v in constant.items() if not math.isnan(v)}
  lower = [t for t, name in metric.items() if name in results.lower_is_better]
  costs = {}
  if run.steps != 0:  # Else nothing was trained, and there is no such file.
    path = run_dir / metrics_files.TRAIN
    costs['seconds_per_step'] = _seconds_per_step(path)
  return {
      'trainable': run.num_params_trainable,
      'total': run.num_params_total,
      'steps': run.steps,
      'device': run.device,
      'seconds': run.seconds,
      **costs,
      'peak_memory_bytes': run.peak_memory_bytes,
      'split': results.split,
      'held_out': list(run.held_out_tasks),
      **({'constant': measured} if measured else {}),
      **({'lower_is_better': lower} if lower else {}),
      **({'rows': dict(results.rows)} if results.rows else {}),
      'base': {task: results.base[task][metric[task]] for task in metric},
      'adapted': {task: results.adapted[task][metric[task]] for task in metric},
  }


def counted(row: Mapping[str, Any]) -> list[str]:
  """The tasks that a score is the mean of: those trained on, or else all."""
  trained = [task for task in row['adapted'] if task not in row['held_out']]
  return trained or list(row['adapted'])


def score(row: Mapping[str, Any], left_out: Container[str] = ()) -> float:
  """How good a run is: higher is better.

  Held-out tasks do not tune. A metric of which less is better counts
  negatively.

  Args:
    row: Of the run.
    left_out: Tasks that do not count, if others do.
  """
  lower, adapted = row.get('lower_is_better') or (), row['adapted']
  tasks = counted(row)
  return statistics.fmean(
      -adapted[task] if task in lower else adapted[task]
      for task in [x for x in tasks if x not in left_out] or tasks
  )


def _seconds_per_step(path: Path) -> float:
  """Median over the logged periods, so that compilation does not count."""
  return statistics.median(
      1 / json_file.Fields(path, row).get('steps_per_second', float)
      for row in metrics_files.read_lines(path)[0]
  )
