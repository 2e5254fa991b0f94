# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a study, in Markdown."""

import collections
from collections.abc import Container, Mapping, Sequence
import statistics

from moe_peft.evaluation import spread
from moe_peft.study import records

_COSTS = {'step': 'seconds_per_step', 'memory': 'peak_memory_bytes'}


def table(
    rows: Sequence[records.Row], reference: str | None = None
) -> str:
  """One line a method: mean ± standard deviation over seeds.

  Args:
    rows: `name`, `seed`, `trainable`, `held_out` (names of tasks), and by task
      `base` and `adapted`, in percent; `tuned` where values were chosen;
      `constant` where always giving the same answer has a score.
    reference: Name of the row with which the others are compared: difference
      of the mean, in bold where it exceeds the spread (see
      `spread.exceeds`), and time and memory as ratios: means over the
      devices that both ran on, empty where there is none.
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
  averages = list(means(rows[0]['adapted'], held_out))
  costs = [f'mean - {reference}', *_COSTS] if reference else []
  headings = ['method', 'trainable', *(['tuned'] if tuned else []), 'seeds']
  fixed = {'base': rows[0]['base']}
  if 'constant' in rows[0]:
    fixed['always the same answer'] = rows[0]['constant']
  lines = [
      [*headings, *tasks, *averages, *costs],
      ['---', *['--:'] * (len(headings + tasks + averages + costs) - 1)],
  ]
  for name, values in fixed.items():
    lines.append([
        name, '0', *[''] * (len(headings) - 2),
        *(f'{values[task]:.1f}' if task in values else '' for task in tasks),
        *(f'{value:.1f}' for value in means(values, held_out).values()),
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
            *(means(row['adapted'], held_out).values() for row in seeds),
            strict=True)),
        *(_compared(seeds, runs[reference]) if reference else []),
    ])
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def text(values: records.Values) -> str:
  """Chosen values in one line."""
  return ','.join(f'{name}={value}' for name, value in values.items())


def means(
    values: Mapping[str, float], held_out: Container[str]
) -> dict[str, float]:
  """Mean over the trained tasks, and over those held out if there are any.

  Args:
    values: By task.
    held_out: Tasks that were not trained on.
  """
  groups = {
      'mean': [v for task, v in values.items() if task not in held_out],
      'held-out mean': [v for task, v in values.items() if task in held_out],
  }
  return {k: statistics.fmean(group) for k, group in groups.items() if group}


def _compared(rows, reference) -> list[str]:
  scores, others = ([records.score(row) for row in side]
                    for side in (rows, reference))
  delta = statistics.fmean(scores) - statistics.fmean(others)
  mark = '**' if spread.exceeds(scores, others) else ''
  return [
      f'{mark}{delta:+.1f}{mark}',
      *(_ratio(rows, reference, key) for key in _COSTS.values()),
  ]


def _ratio(rows, reference, key: str) -> str:
  sides = _by_device(rows, key), _by_device(reference, key)
  shared = set(sides[0]) & set(sides[1])  # A GPU's second is not a CPU's.
  ratios = [
      statistics.median(sides[0][device]) / statistics.median(sides[1][device])
      for device in shared
  ]
  return f'{statistics.fmean(ratios):.2f}' if ratios else ''


def _by_device(
    rows: Sequence[records.Row], key: str
) -> dict[str | None, list[float]]:
  values = collections.defaultdict(list)
  for row in rows:
    values[row.get('device')].append(row[key])  # Older rows do not name it.
  return values


def _cell(values: Sequence[float]) -> str:
  if len(values) == 1:
    return f'{values[0]:.1f}'
  return f'{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}'
