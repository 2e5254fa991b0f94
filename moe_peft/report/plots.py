# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plots of training and results."""

from collections.abc import Mapping, Sequence

import markupsafe
import numpy as np

from moe_peft.report import figure
from moe_peft.runs import metrics_files

_MAX_POINTS = 240
_MARKED_POINTS = 30


def thin(
    curve: metrics_files.Curve, limit: int = _MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` points: each the mean of equally many neighbors.

  Returns:
    Steps and values; the mean of a part with a gap is a gap.
  """
  steps = curve.steps.astype(np.float64)
  values = np.where(np.isfinite(curve.values), curve.values, np.nan)
  parts = np.array_split(np.arange(len(values)), min(limit, len(values)) or 1)
  return (
      np.array([steps[p].mean() for p in parts if len(p)]),
      np.array([values[p].mean() for p in parts if len(p)]),
  )


def curves(
    lines: Mapping[int, metrics_files.Curve],
    description: str,
    low: float | None = None,
    high: float | None = None,
) -> markupsafe.Markup:
  """One scalar over steps, one line for each run.

  Args:
    lines: Curves by index of the run, which sets the color.
    description: Text for screen readers.
    low: Lower bound of the vertical axis that must be visible.
    high: The same for its upper bound.
  """
  finite = np.concatenate([c.values for c in lines.values()])
  finite = finite[np.isfinite(finite)]
  with figure.new(340, 214) as fig:
    ax = figure.axes(fig, 46, 8, 288, 164)
    for index, curve in lines.items():
      steps, values = thin(curve)
      color, dash, _ = figure.series_style(index)
      (line,) = ax.plot(steps, values, color=color, linewidth=1.8)
      if dash:
        line.set_dashes(dash)
      few = len(values) <= _MARKED_POINTS
      marked = np.full(len(values), True) if few else _isolated(values)
      ax.plot(steps[marked], values[marked], 'o', color=color,
              markersize=4 if few else 3)
    if low is not None:
      low = min(finite.min(initial=low), low)
      high = max(finite.max(initial=high), high)
      if low < high:
        pad = 0.03 * (high - low)
        ax.set_ylim(low - pad, high + pad)
    ax.set_xlabel('step')
    _compact_ticks(ax)
    if not finite.size:
      ax.set_yticks([])
      ax.text(0.5, 0.5, 'no finite value', color=figure.MUTED, ha='center',
              transform=ax.transAxes)
    return figure.to_svg(fig, description)


def _isolated(values: np.ndarray) -> np.ndarray:
  """Finite points between two gaps, which a line alone would not show."""
  finite = np.concatenate([[False], np.isfinite(values), [False]])
  return finite[1:-1] & ~finite[:-2] & ~finite[2:]


def _compact_ticks(ax) -> None:
  from matplotlib import ticker

  for axis in (ax.xaxis, ax.yaxis):
    steps = axis is ax.xaxis
    axis.set_major_locator(ticker.MaxNLocator(5, integer=steps))
    axis.set_major_formatter(ticker.FuncFormatter(figure.compact))
    axis.set_tick_params(length=0, pad=5)
  ax.spines['left'].set_visible(False)
  ax.grid(axis='x', visible=False)


def dumbbells(
    tasks: Sequence[str], base: np.ndarray, adapted: np.ndarray, metric: str
) -> markupsafe.Markup:
  """Base and adapted value of each task on one axis.

  Args:
    tasks: Names, [num_tasks].
    base: <float64>[num_runs, num_tasks], NaN where not measured.
    adapted: <float64>[num_runs, num_tasks].
    metric: What is measured, for screen readers.
  """
  num_runs, num_tasks = adapted.shape
  row = max(30, 9 * num_runs + 12)
  height, width = row * num_tasks, 400
  names = [figure.label(task) for task in tasks]
  left = 16 + 6.6 * max(map(len, names))
  with figure.new(width, height + 26) as fig:
    ax = figure.axes(fig, left, 4, width - left - 16, height)
    for run in range(num_runs):
      color, _, marker = figure.series_style(run)
      y = np.arange(num_tasks) + (run - (num_runs - 1) / 2) * 9 / row
      ax.hlines(y, base[run], adapted[run], color=color, linewidth=2,
                alpha=0.55)
      ax.plot(base[run], y, 'o', color=figure.SURFACE, markersize=6.5,
              markeredgecolor=figure.MUTED, markeredgewidth=1.6, clip_on=False)
      ax.plot(adapted[run], y, marker, color=color, clip_on=False,
              markersize=7.5 if num_runs == 1 else 6)
    ax.set_yticks(range(num_tasks), names, color=figure.INK)
    ax.set_ylim(num_tasks - 0.5, -0.5)
    ax.set_xlim(*value_range(np.concatenate([base, adapted])))
    ax.tick_params(length=0)
    ax.spines['left'].set_visible(False)
    ax.grid(axis='y', visible=False)
    return figure.to_svg(fig, f'{metric} of each task, base and adapted')


def value_range(values: np.ndarray) -> tuple[float, float]:
  """The whole scale of a share or a percentage, else zero to the maximum."""
  finite = values[np.isfinite(values)]
  low = min(finite.min(initial=0.0), 0.0)
  high = finite.max(initial=0.0)
  if low == 0 and high <= 1:
    return -0.01, 1.01
  if low == 0 and 10 < high <= 100:
    return -1.0, 101.0
  pad = 0.03 * (high - low)
  return low - pad, high + pad
