# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The section of the report about results: base against adapted."""

from collections.abc import Sequence
import math

import numpy as np

from moe_peft.report import markup
from moe_peft.report import plots
from moe_peft.runs import run as run_lib

_LOWER_IS_BETTER = ('loss', 'perplexity', 'error', 'wer', 'cer', 'distance')


def lower_is_better(metric: str) -> bool:
  """Whether a smaller value of the metric is the better one, by its name."""
  return any(word in metric.lower() for word in _LOWER_IS_BETTER)


def results(runs: Sequence[run_lib.Run]) -> str:
  """The chart of base and adapted, and the tables behind it."""
  scored = [(i, r) for i, r in enumerate(runs) if r.scores]
  if not scored:
    return (
        '<p class="muted">No results yet: results.json is written at the end'
        ' of a run.</p>'
    )
  splits = sorted({r.split for _, r in scored if r.split})
  parts = [
      '<p>Each line is a task. The ring is the base model before any'
      ' training, the filled mark is the same model with its adapters; the'
      ' longer the bar between them, the more the adapters changed. '
      f'{_counts(scored, splits)}</p>',
      markup.legend(
          [r.name for r in runs] if len(runs) > 1 else [],
          markup.marker('ring', 'base')
          + (markup.marker('dot', 'adapted') if len(runs) == 1 else ''),
      ),
  ]
  metrics = dict.fromkeys(
      s.metric for _, r in scored for s in r.scores if s.primary
  )
  charts = ''.join(_metric_chart(runs, m) for m in metrics)
  parts.append(f'<div class="pairs">{charts}</div>')
  if len(runs) == 1:
    parts.append(_score_table(runs[0]))
  else:
    parts.append(_comparison(runs))
    for _, run in scored:
      parts.append(
          '<details class="keep"><summary>All metrics of'
          f' {markup.escape(run.name)}</summary>{_score_table(run)}</details>'
      )
  return '\n'.join(parts)


def _counts(scored, splits) -> str:
  numbers = [n for _, r in scored for n in r.num_examples.values()]
  if not numbers:
    return ''
  low, high = min(numbers), max(numbers)
  many = f'{low}' if low == high else f'{low} to {high}'
  split = f' of the {" and ".join(splits)} split' if splits else ''
  return f'Measured on {many} examples of each task{markup.escape(split)}.'


def _metric_chart(runs, metric: str) -> str:
  tasks = list(dict.fromkeys(
      s.task for r in runs for s in r.scores
      if s.primary and s.metric == metric
  ))
  values = np.full((2, len(runs), len(tasks)), np.nan)
  for i, run in enumerate(runs):
    for s in run.scores:
      if s.primary and s.metric == metric:
        values[:, i, tasks.index(s.task)] = s.base, s.adapted
  svg = plots.dumbbells(tasks, values[0], values[1], metric)
  note = 'Lower is better.' if lower_is_better(metric) else ''
  return markup.panel(metric, note, svg)


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else math.nan


def _score_table(run: run_lib.Run) -> str:
  rows, classes = [], []
  last = None
  for s in run.scores:
    name = f'<b>{markup.escape(s.task)}</b><br>' if s.task != last else ''
    rows.append([
        f'{name}<small>{markup.escape(s.metric)}</small>',
        markup.number(run.constant_answer[s.task])
        if s.primary and s.task in run.constant_answer else '',
        markup.number(s.base),
        f'<b>{markup.number(s.adapted)}</b>',
        markup.number(s.adapted - s.base, sign=True),
        '' if s.task == last else markup.count(run.num_examples.get(s.task)),
    ])
    classes.append('' if s.primary else 'minor')
    last = s.task
  primary = [s for s in run.scores if s.primary]
  if len(primary) > 1 and len({s.metric for s in primary}) == 1:
    base = _mean([s.base for s in primary])
    adapted = _mean([s.adapted for s in primary])
    rows.append([
        f'Mean over tasks<br><small>{markup.escape(primary[0].metric)}</small>',
        '',
        markup.number(base),
        markup.number(adapted),
        markup.number(adapted - base, sign=True),
        '',
    ])
    classes.append('total')
  return markup.table(
      ['Task, metric', 'Same answer always', 'Base', 'Adapted', 'Difference',
       'Examples'],
      rows, classes,
  )


def _comparison(runs) -> str:
  """Rows runs, columns tasks: adapted value and difference from the base."""
  columns = list(dict.fromkeys(
      (s.task, s.metric) for r in runs for s in r.scores if s.primary
  ))
  with_mean = len(columns) > 1 and len({m for _, m in columns}) == 1
  best = {}
  table = [{(s.task, s.metric): s for s in r.scores} for r in runs]
  for key in columns:
    seen = [row[key].adapted for row in table if key in row]
    seen = [v for v in seen if math.isfinite(v)]
    if seen:
      best[key] = min(seen) if lower_is_better(key[1]) else max(seen)
  rows = []
  for run, row in zip(runs, table, strict=True):
    cells = [markup.escape(run.name)]
    for key in columns:
      s = row.get(key)
      if s is None:
        cells.append(markup.NOTHING)
        continue
      text = markup.number(s.adapted)
      if s.adapted == best.get(key):
        text = f'<b>{text}</b>'
      cells.append(
          f'{text}<br><small>{markup.number(s.adapted - s.base, True)}</small>'
      )
    if with_mean:
      found = [row[k].adapted for k in columns if k in row]
      complete = len(found) == len(columns)
      cells.append(markup.number(_mean(found)) if complete else markup.NOTHING)
    rows.append(cells)
  head = ['Run'] + [
      f'{markup.escape(t)}<br><small>{markup.escape(m)}</small>'
      for t, m in columns
  ]
  return (
      '<p>Adapted value of the primary metric of each task; below it the'
      ' difference from that run’s base. The best of a column is bold.</p>'
      + markup.table(head + (['Mean'] if with_mean else []), rows)
  )
