# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures about training and results."""

from collections.abc import Mapping, Sequence

import numpy as np

from moe_peft.report import figure
from moe_peft.runs import records

_MAX_POINTS = 240
_MARKED_POINTS = 30


def thin(
    curve: records.Curve, limit: int = _MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` points: each the mean of equally many neighbors.

  Returns:
    Steps and values, <float64>[<= limit]. A window that holds NaN or
    infinity is NaN, so a break in the curve stays visible.
  """
  values = np.where(np.isfinite(curve.values), curve.values, np.nan)
  steps = curve.steps.astype(np.float64)
  if len(values) <= limit:
    return steps, values
  parts = np.array_split(np.arange(len(values)), limit)
  return (
      np.array([steps[p].mean() for p in parts]),
      np.array([values[p].mean() for p in parts]),
  )


def curves(
    lines: Mapping[int, records.Curve],
    description: str,
    limits: tuple[float, float] | None = None,
) -> str:
  """One scalar over steps, one line for each run.

  Args:
    lines: index of the run (it sets the color) -> curve.
    description: for screen readers.
    limits: bounds of the vertical axis that must be visible.

  Returns:
    Inline SVG.
  """
  with figure.theme():
    fig = figure.new(340, 214)
    ax = figure.axes(fig, 46, 8, 288, 164)
    for index, curve in lines.items():
      steps, values = thin(curve)
      color, dash = figure.series_style(index)
      (line,) = ax.plot(steps, values, color=color, linewidth=1.8)
      if dash:
        line.set_dashes(dash)
      alone = _isolated(values)
      if len(values) <= _MARKED_POINTS:
        ax.plot(steps, values, 'o', color=color, markersize=4)
      elif alone.any():
        ax.plot(steps[alone], values[alone], 'o', color=color, markersize=3)
    if limits:
      _show_at_least(ax, lines.values(), *limits)
    ax.set_xlabel('step')
    _compact_ticks(ax)
    if not any(np.isfinite(c.values).any() for c in lines.values()):
      ax.set_yticks([])
      ax.text(
          0.5, 0.5, 'no finite value', color=figure.MUTED, ha='center',
          transform=ax.transAxes,
      )
    return figure.to_svg(fig, description)


def _show_at_least(ax, lines, low: float, high: float) -> None:
  values = np.concatenate([c.values for c in lines])
  values = values[np.isfinite(values)]
  low = min(values.min(initial=low), low)
  high = max(values.max(initial=high), high)
  if low < high:
    pad = 0.03 * (high - low)
    ax.set_ylim(low - pad, high + pad)


def _isolated(values: np.ndarray) -> np.ndarray:
  """Finite points between two gaps, which a line alone would not show."""
  finite = np.concatenate([[False], np.isfinite(values), [False]])
  return finite[1:-1] & ~finite[:-2] & ~finite[2:]


def _compact_ticks(ax) -> None:
  from matplotlib import ticker

  for axis, count in ((ax.xaxis, 5), (ax.yaxis, 5)):
    axis.set_major_locator(ticker.MaxNLocator(count))
    axis.set_major_formatter(ticker.FuncFormatter(figure.compact))
    axis.set_tick_params(length=0, pad=5)
  ax.spines['left'].set_visible(False)
  ax.grid(axis='x', visible=False)


def dumbbells(
    tasks: Sequence[str],
    base: np.ndarray,
    adapted: np.ndarray,
    metric: str,
) -> str:
  """Base and adapted value of each task on one axis.

  Args:
    tasks: names, [num_tasks].
    base: <float64>[num_runs, num_tasks], NaN where not measured.
    adapted: <float64>[num_runs, num_tasks].
    metric: what is measured, for screen readers.

  Returns:
    Inline SVG.
  """
  num_runs, num_tasks = adapted.shape
  row = max(30, 9 * num_runs + 12)
  height = row * num_tasks
  names = [figure.label(t) for t in tasks]
  left = 16 + 6.6 * max(map(len, names))
  width = 400
  with figure.theme():
    fig = figure.new(width, height + 26)
    ax = figure.axes(fig, left, 4, width - left - 16, height)
    for r in range(num_runs):
      color, _ = figure.series_style(r)
      offset = (r - (num_runs - 1) / 2) * 9 / row
      y = np.arange(num_tasks) + offset
      ax.hlines(y, base[r], adapted[r], color=color, linewidth=2, alpha=0.55)
      ax.plot(
          base[r], y, 'o', color=figure.SURFACE, markersize=6.5,
          markeredgecolor=figure.MUTED, markeredgewidth=1.6,
      )
      ax.plot(
          adapted[r], y, figure.series_marker(r), color=color,
          markersize=7.5 if num_runs == 1 else 6,
      )
    ax.set_yticks(range(num_tasks), names)
    ax.set_ylim(num_tasks - 0.5, -0.5)
    ax.set_xlim(*value_range(np.concatenate([base, adapted])))
    ax.tick_params(length=0)
    for tick in ax.get_yticklabels():
      tick.set_color(figure.INK)
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
