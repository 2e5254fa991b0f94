# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a study, in Markdown."""

import statistics
from typing import Optional, Sequence

from moe_peft.analysis import spread
from moe_peft.study import records

_COSTS = {'step': 'seconds_per_step', 'memory': 'peak_memory_bytes'}


def table(
    rows: Sequence[records.Row], reference: Optional[str] = None
) -> str:
  """One line a method: mean ± standard deviation over seeds.

  Args:
    rows: `name`, `seed`, `trainable`, `held_out` (names of tasks), and by task
      `base` and `adapted`, in percent; `tuned` where values were chosen;
      `constant` where always giving the same answer has a score.
    reference: Name of the row with which the others are compared: difference
      of the mean, in bold where it exceeds the spread (see
      `spread.exceeds`), and time and memory as ratios.
  """
  if not rows:
    return ''
  runs = {
      name: [row for row in rows if row['name'] == name]
      for name in dict.fromkeys(row['name'] for row in rows)
  }
  if reference not in runs:
    reference = None
  tuned = any('tuned' in row for row in rows)
  tasks = list(rows[0]['adapted'])
  held_out = rows[0]['held_out']
  means = ['mean', *(['held-out mean'] if held_out else [])]
  costs = [f'mean - {reference}', *_COSTS] if reference else []
  headings = ['method', 'trainable', *(['tuned'] if tuned else []), 'seeds']
  fixed = {'base': rows[0]['base']}
  if 'constant' in rows[0]:
    fixed['always the same answer'] = rows[0]['constant']
  lines = [
      [*headings, *tasks, *means, *costs],
      ['---', *['--:'] * (len(headings + tasks + means + costs) - 1)],
  ]
  for name, values in fixed.items():
    lines.append([
        name, '0', *[''] * (len(headings) - 2),
        *(f'{values[task]:.1f}' if task in values else '' for task in tasks),
        *(f'{value:.1f}' for value in _means(values, held_out)),
        *[''] * len(costs),
    ])
  for name, seeds in runs.items():
    lines.append([
        name,
        f'{seeds[0]["trainable"]:,}',
        *([text(seeds[0].get('tuned', {}))] if tuned else []),
        str(len(seeds)),
        *(_cell([row['adapted'][task] for row in seeds]) for task in tasks),
        *(_cell(list(values)) for values in zip(
            *(_means(row['adapted'], held_out) for row in seeds), strict=True)),
        *(_compared(seeds, runs[reference]) if reference else []),
    ])
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def text(values: records.Values) -> str:
  """Chosen values in one line."""
  return ','.join(f'{name}={value}' for name, value in values.items())


def _compared(rows, reference) -> list[str]:
  means, others = (
      [_means(row['adapted'], row['held_out'])[0] for row in side]
      for side in (rows, reference)
  )
  delta = statistics.fmean(means) - statistics.fmean(others)
  mark = '**' if spread.exceeds(means, others) else ''
  ratios = (
      _median(rows, key) / _median(reference, key) for key in _COSTS.values()
  )
  return [f'{mark}{delta:+.1f}{mark}', *(f'{ratio:.2f}' for ratio in ratios)]


def _means(values, held_out) -> list[float]:
  """Mean of the trained tasks, and of those held out if there are any."""
  groups = [
      [v for task, v in values.items() if (task in held_out) == side]
      for side in (False, True)
  ]
  return [statistics.fmean(group) for group in groups if group]


def _median(rows: Sequence[records.Row], key: str) -> float:
  return statistics.median(row[key] for row in rows)


def _cell(values: Sequence[float]) -> str:
  if len(values) == 1:
    return f'{values[0]:.1f}'
  return f'{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}'
