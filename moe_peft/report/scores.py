# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page says of runs and of their scores."""

from collections.abc import Iterable, Mapping, Sequence
import math
import os
from pathlib import PurePath
import re
import statistics
from typing import Any

import markupsafe
import numpy as np

from moe_peft.report import plots
from moe_peft.runs import metrics_files
from moe_peft.runs import run as run_lib

# A column of a table: a task and a metric.
Column = tuple[str, str]


def title(runs: Sequence[run_lib.Run]) -> str:
  """The heading of the page."""
  if len(runs) > 1:
    return f'{len(runs)} runs compared'
  base = base_name(runs[0])
  return method(runs[0]) + (f' on {base}' if base else '')


def method(run: run_lib.Run) -> str:
  """The methods of a run; a gin file without its folder and ending.

  A run that does not name its method is called after the modules of
  `moe_peft.methods` that its configuration imports, or after its directory.
  """
  short = [os.path.basename(n).removesuffix('.gin') for n in run.info.method]
  pattern = r'^(?:from moe_peft\.methods import|import moe_peft\.methods\.)'
  imported = re.findall(pattern + r'\s*(\w+)', run.config, re.MULTILINE)
  return ' + '.join(short or sorted(set(imported))) or run.name


def base_name(run: run_lib.Run) -> str | None:
  """What the base is called: its file or folder.

  run.json holds a path, or the identity of a base with its `path`.
  """
  value = run.info.base
  if isinstance(value, Mapping):
    value = str(value.get('path') or 'a random base')
  if value is None:
    return None
  path = PurePath(value)
  name = path.name.removesuffix('.safetensors')
  generic = name != path.name and name in ('base', 'model', 'params')
  return (path.parent.name if generic else name) or value


def columns(
    runs: Iterable[run_lib.Run], primary: bool = True
) -> dict[Column, bool]:
  """Tasks and their (primary) metrics; whether a lower value is better."""
  return {
      column: score.metric in run.results.lower_is_better
      for run in runs for column, score in run.scores.items()
      if score.primary or not primary
  }


def means(runs: Sequence[run_lib.Run]) -> dict[str, list[Column]]:
  """What is averaged under which heading; the mean of one column is no mean.

  As in the tables of studies, those tasks are held out that none of the runs
  has trained on.
  """
  held_out = lambda task: all(
      task in run.info.held_out_tasks for run in runs
      if run.results and task in run.results.adapted
  )
  found = {'Mean over tasks': [], 'Held-out mean': []}
  for column in columns(runs):
    name = 'Held-out mean' if held_out(column[0]) else 'Mean over tasks'
    found[name].append(column)
  return {name: of for name, of in found.items() if len(of) > 1}


def charts(
    runs: Sequence[run_lib.Run],
) -> list[tuple[str, bool, markupsafe.Markup]]:
  """Metric, whether lower is better, and the plot, by primary metric."""
  tasks: dict[tuple[str, bool], list[str]] = {}
  for (task, metric), lower in columns(runs).items():
    tasks.setdefault((metric, lower), []).append(task)
  value = lambda name, metric, of_metric: np.array([
      [getattr(run.scores.get((task, metric)), name, math.nan)
       for task in of_metric]
      for run in runs
  ])
  return [
      (metric, lower, plots.dumbbells(
          of_metric, value('base', metric, of_metric),
          value('adapted', metric, of_metric), metric,
      ))
      for (metric, lower), of_metric in tasks.items()
  ]


def mean(
    run: run_lib.Run, of: Iterable[Column], name: str = 'adapted'
) -> float:
  """Mean over columns; NaN where the run lacks one."""
  return statistics.fmean(
      getattr(run.scores.get(column), name, math.nan) for column in of
  )


def best(
    runs: Sequence[run_lib.Run], of: Mapping[Column, bool]
) -> dict[Column, float]:
  """The best adapted value of each column."""
  found = {}
  for column, lower in of.items():
    values = [r.scores[column].adapted for r in runs if column in r.scores]
    if values := [value for value in values if math.isfinite(value)]:
      found[column] = min(values) if lower else max(values)
  return found


def lines(runs: Sequence[run_lib.Run], key: Any, of: str = 'train'):
  """The curves of one quantity by index of the run."""
  return {
      i: getattr(run, of)[key]
      for i, run in enumerate(runs) if key in getattr(run, of)
  }


def evaluated(
    runs: Sequence[run_lib.Run],
) -> tuple[list[Column], list[Column]]:
  """What was evaluated while training: a metric of each task, and the rest."""
  keys = list(dict.fromkeys(key for run in runs for key in run.evaluation))
  first = {task: (task, metric) for task, metric in reversed(keys)}
  first |= {task: (task, metric) for task, metric in columns(runs)}
  shown = [key for key in keys if first[key[0]] == key]
  return shown, [key for key in keys if key not in shown]


def turning_points(
    curve: metrics_files.Curve, lower: bool
) -> tuple[float, float, int | None, float]:
  """First and best value, step of the best one, last value."""
  values = curve.values
  if not np.isfinite(values).any():
    return math.nan, math.nan, None, math.nan
  index = int(np.nanargmin(values) if lower else np.nanargmax(values))
  return values[0], values[index], int(curve.steps[index]), values[-1]
