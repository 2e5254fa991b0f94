# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a study, in Markdown."""

import collections
from collections.abc import Container, Mapping, Sequence
import math
import statistics

from moe_peft.evaluation import spread
from moe_peft.runs import controls_file
from moe_peft.study import records
from moe_peft.study import tuning as tuning_lib

# With more tasks the scores have a table of their own with a line a task.
_MOST_COLUMNS = 16
_COSTS = {'step': 'seconds_per_step', 'memory': 'peak_memory_bytes'}


def table(rows: Sequence[records.Row], reference: str | None = None) -> str:
  """One line a method: mean ± standard deviation over seeds.

  Args:
    rows: `name`, `seed`, `trainable`, `held_out` (names of tasks), and by task
      `base` and `adapted`, in percent; `tuned` where values were chosen;
      `constant` where always giving the same answer has a score.
    reference: Name of the row with which the others are compared: difference
      of the mean, in bold where it is significantly different (Welch,
      p < 0.05), and time and memory as ratios: means over the devices that
      both ran on, empty where there is none.
  """
  if not rows:
    return ''
  runs = collections.defaultdict(list)
  for row in rows:
    runs[row['name']].append(row)
  compared = runs.get(reference)
  tuned = any('tuned' in row for row in rows)
  tasks, held_out = list(rows[0]['adapted']), rows[0]['held_out']
  costs = [f'mean - {reference}', *_COSTS] if compared else []
  head = ['method', 'trainable', *(['tuned'] if tuned else []), 'seeds']
  shown = tasks if len(tasks) <= _MOST_COLUMNS else []
  lines = [[*head, *shown, *means(rows[0]['adapted'], held_out), *costs]]
  lines.append(['---', *['--:'] * (len(lines[0]) - 1)])
  fixed = {'base': rows[0]['base']}
  if 'constant' in rows[0]:
    fixed['always the same answer'] = rows[0]['constant']
  for name, values in fixed.items():
    lines.append([
        name, '0', *[''] * (len(head) - 2),
        *(f'{values[task]:.1f}' if task in values else '' for task in shown),
        # A mean of some tasks alone would be compared with those of all.
        *('' if math.isnan(value) else f'{value:.1f}' for value in means(
            {task: values.get(task, math.nan) for task in tasks}, held_out
        ).values()),
        *[''] * len(costs),
    ])
  for name, seeds in runs.items():
    averages = [means(row['adapted'], held_out).values() for row in seeds]
    lines.append([
        name,
        f'{seeds[0]["trainable"]:,}',
        *([records.text(seeds[0].get('tuned', {}))] if tuned else []),
        str(len(seeds)),
        *(cell([row['adapted'][task] for row in seeds]) for task in shown),
        *(cell(values) for values in zip(*averages, strict=True)),
        *(_comparison(seeds, compared) if compared else []),
    ])
  text = markdown(lines)
  return text if shown else f'{text}\n{_by_task(runs, fixed, tasks, held_out)}'


def _by_task(
    runs: Mapping[str, Sequence[records.Row]],
    fixed: Mapping[str, Mapping[str, float]],
    tasks: Sequence[str],
    held_out: Container[str],
) -> str:
  """One line a task, one column a method."""
  lines = [['task', *fixed, *runs], ['---', *['--:'] * len([*fixed, *runs])]]
  for task in tasks:
    lines.append([
        f'{task} (held out)' if task in held_out else task,
        *(f'{values[task]:.1f}' if task in values else ''
          for values in fixed.values()),
        *(cell([row['adapted'][task] for row in seeds])
          for seeds in runs.values()),
    ])
  return markdown(lines)


def tuning(tuners: Mapping[str, tuning_lib.Tuner]) -> str:
  """One line a method: what tuning chose, and whether it can be trusted.

  Args:
    tuners: The tuner of each method; all of them have a winner.
  """
  lines = [
      ['method', 'chosen', 'at the edge of what was tried',
       'rank correlation of the first two rounds'],
      ['---'] * 4,
  ]
  for name, tuner in tuners.items():
    agreement = tuner.agreement()
    lines.append([
        name,
        records.text(tuner.best()),
        ', '.join(tuner.at_edge()) or 'no',
        '' if math.isnan(agreement) else f'{agreement:.2f}',
    ])
  return markdown(lines)


def controls(
    rows: Sequence[records.Row], without: Container[str] = ()
) -> str:
  """One line a method that routes: its mean with its routing replaced.

  Args:
    rows: As of `table`; those without `controls` are left out.
    without: Tasks that the mean leaves out.

  Returns:
    Mean ± standard deviation over seeds; empty if no row has controls.
  """
  runs = collections.defaultdict(list)
  for row in rows:
    if records.CONTROLS in row:
      runs[row['name']].append(row)
  if not runs:
    return ''
  names = list(dict.fromkeys(
      name for seeds in runs.values() for row in seeds
      for name in row[records.CONTROLS]
  ))
  lines = [['method', 'seeds', controls_file.TRAINED, *names]]
  lines.append(['---', *['--:'] * (len(lines[0]) - 1)])
  for method, seeds in runs.items():
    scores = [
        {controls_file.TRAINED: row['adapted'], **row[records.CONTROLS]}
        for row in seeds
    ]
    lines.append([method, str(len(seeds)), *(
        cell([_mean(x[name], without) for x in scores])
        for name in (controls_file.TRAINED, *names)
    )])
  return markdown([[x.replace('_', ' ') for x in lines[0]], *lines[1:]])


def _mean(values: Mapping[str, float], without: Container[str]) -> float:
  return statistics.fmean(x for k, x in values.items() if k not in without)


def compared(rows: Sequence[records.Row]) -> list[records.Row]:
  """The rows, with those tasks held out that none of them has trained on.

  Otherwise the mean of an expert would be that of its own task alone.
  """
  held_out = [
      task for task in (rows[0]['held_out'] if rows else ())
      if all(task in row['held_out'] for row in rows)
  ]
  return [{**row, 'held_out': held_out} for row in rows]


def means(
    values: Mapping[str, float], held_out: Container[str]
) -> dict[str, float]:
  """Mean over the trained tasks, and over those held out if there are any.

  Args:
    values: A value of each task.
    held_out: Tasks that were not trained on.
  """
  groups = {
      'mean': [v for task, v in values.items() if task not in held_out],
      'held-out mean': [v for task, v in values.items() if task in held_out],
  }
  return {k: statistics.fmean(group) for k, group in groups.items() if group}


def _comparison(
    rows: Sequence[records.Row], reference: Sequence[records.Row]
) -> list[str]:
  """Cells of the columns that compare a method with the reference."""
  first = lambda row: next(iter(
      means(row['adapted'], row['held_out']).values()
  ))
  scores, others = (list(map(first, side)) for side in (rows, reference))
  delta = statistics.fmean(scores) - statistics.fmean(others)
  mark = '**' if spread.differ(scores, others) else ''
  return [
      f'{mark}{delta:+.1f}{mark}',
      *(_ratio(rows, reference, key) for key in _COSTS.values()),
  ]


def _ratio(rows, reference, key: str) -> str:
  ours, theirs = (
      {k: statistics.median(x) for k, x in _by_device(side, key).items()}
      for side in (rows, reference)
  )
  # A GPU's second is not a CPU's.
  ratios = [x / theirs[k] for k, x in ours.items() if theirs.get(k)]
  return f'{statistics.fmean(ratios):.2f}' if ratios else ''


def _by_device(
    rows: Sequence[records.Row], key: str
) -> dict[str | None, list[float]]:
  """Measured costs; older rows name no device, or lack the cost."""
  values = collections.defaultdict(list)
  for row in rows:
    if row.get(key) is not None:
      values[row.get('device')].append(row[key])
  return values


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """A table whose second line says how its columns are aligned."""
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def cell(values: Sequence[float]) -> str:
  """Mean, and standard deviation of two or more values."""
  if len(values) == 1:
    return f'{values[0]:.1f}'
  return f'{statistics.fmean(values):.1f} ± {spread.deviation(values):.1f}'
