# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures about routers: who uses which expert, where, and how surely."""

from collections.abc import Sequence

import numpy as np

from moe_peft.report import figure
from moe_peft.routers import statistics
from moe_peft.runs import routing_records

_CELL = 17
_GAP = 10
_BAR = 70
_BAR_WIDTH = 280
# A load within 10 % of uniform must not look like a preference.
_LEAST_CONTRAST = 0.1


def load_range(sites: Sequence[routing_records.Site]) -> tuple[float, float]:
  """Ends of one color scale for all sites; the uniform value is inside."""
  values = np.concatenate([s.load.ravel() for s in sites])
  values = values[np.isfinite(values)]
  uniform = np.array([1 / s.num_experts for s in sites])
  low = min(values.min(initial=1.0), uniform.min() * (1 - _LEAST_CONTRAST))
  high = max(values.max(initial=0.0), uniform.max() * (1 + _LEAST_CONTRAST))
  # A scale that nearly reaches zero starts there: plain labels.
  return (0.0 if low < 0.1 * high else float(low)), float(high)


def by_name(
    sites: Sequence[routing_records.Site],
) -> dict[str, list[routing_records.Site]]:
  """Sites grouped by name, in order of the model, layers ascending."""
  groups: dict[str, list[routing_records.Site]] = {}
  for site in sites:
    groups.setdefault(site.name, []).append(site)
  return {
      name: sorted(group, key=lambda s: s.layer)
      for name, group in groups.items()
  }


def expert_load(
    tasks: Sequence[str],
    sites: Sequence[routing_records.Site],
    limits: tuple[float, float],
    description: str,
) -> str:
  """Mean combine weight of each task and expert, for one stack.

  One line for each site name, one panel for each layer; rows are tasks,
  columns experts.

  Args:
    tasks: names, [num_tasks].
    sites: sites of one stack; `load` [num_tasks, num_experts].
    limits: ends of the color scale (see `load_range`).
    description: for screen readers.

  Returns:
    Inline SVG.
  """
  groups = by_name(sites)
  names = [figure.label(t, 22) for t in tasks]
  left = 12 + 6.6 * max(map(len, names))
  most = max(s.num_experts for s in sites)
  # Panels shrink until a dozen layers fit on a desktop, then the box scrolls.
  room = 900 / max(map(len, groups.values())) - _GAP
  cell = float(np.clip(np.clip(room, 64, 150) / most, 3, 18))
  widths = {
      name: [s.num_experts * cell for s in group]
      for name, group in groups.items()
  }
  panel = _CELL * len(tasks)
  line = 40 + panel + 30
  inner = max(sum(w) + _GAP * (len(w) - 1) for w in widths.values())
  width = left + max(inner, _BAR_WIDTH) + 12
  height = line * len(groups) + _BAR
  with figure.theme():
    fig = figure.new(width, height)
    for row, (name, group) in enumerate(groups.items()):
      top = _BAR + line * row + 40
      _write(fig, 4, top - 26, name, weight='bold')
      x = left
      for site, site_width in zip(group, widths[name], strict=True):
        ax = figure.axes(fig, x, top, site_width, panel)
        _image(ax, site.load, limits)
        ax.set_title(
            f'layer {site.layer}' if site_width > 48 else f'{site.layer}',
            fontsize=10, color=figure.MUTED, pad=3,
        )
        last = site.num_experts - 1
        ax.set_xticks([0, last] if last else [0])
        ax.tick_params(labelsize=9.5, length=0, pad=3)
        ax.set_yticks(
            range(len(tasks)) if x == left else [],
            names if x == left else [],
            fontsize=10.5, color=figure.INK,
        )
        x += site_width + _GAP
      _write(fig, left - 4, top + panel + 13, 'expert', size=10, align='right')
    _colour_bar(
        fig, 4, 20, limits, 'mean combine weight',
        sorted({s.num_experts for s in sites}),
    )
    return figure.to_svg(fig, description, scale=0.9)


def site_values(
    sites: Sequence[routing_records.Site],
    values: np.ndarray,
    limits: tuple[float, float],
    description: str,
) -> str:
  """One value for each site: rows are site names, columns layers.

  Args:
    sites: sites of one stack.
    values: <float64>[len(sites)]; NaN leaves a cell empty.
    limits: ends of the color scale.
    description: for screen readers.

  Returns:
    Inline SVG.
  """
  names, layers, grid = _grid(sites, values)
  labels = [figure.label(n, 22) for n in names]
  cell_width = float(np.clip(320 / len(layers), 30, 42))
  left = 12 + 6.4 * max(map(len, labels))
  tall = 21 * len(names)
  with figure.theme():
    fig = figure.new(left + max(len(layers) * cell_width, 150) + 8, tall + 28)
    ax = figure.axes(fig, left, 4, len(layers) * cell_width, tall)
    _image(ax, grid, limits)
    ax.set_xticks(range(len(layers)), layers)
    ax.set_yticks(
        range(len(names)), labels, fontsize=10.5, color=figure.INK
    )
    ax.tick_params(length=0, pad=4)
    _write(fig, left - 4, tall + 20, 'layer', size=10, align='right')
    for (i, j), value in np.ndenumerate(grid):
      if np.isfinite(value):
        ax.text(
            j, i, f'{value:.2f}', ha='center', va='center', fontsize=10,
            color=_text_colour(value, limits),
        )
    return figure.to_svg(fig, description, scale=0.9)


def matrix(
    rows: Sequence[str],
    values: np.ndarray,
    limits: tuple[float, float],
    description: str,
    colors: str = 'viridis',
    columns: str = 'expert',
) -> str:
  """A small map with a number for each column.

  Args:
    rows: names, [num_rows].
    values: <float64>[num_rows, num_columns]; NaN leaves a cell empty.
    limits: ends of the color scale.
    description: for screen readers.
    colors: a color map of matplotlib.
    columns: what the columns are, numbered from 0.

  Returns:
    Inline SVG.
  """
  labels = [figure.label(name, 22) for name in rows]
  left = max(12 + 6.4 * max(map(len, labels)), 8 + 6.4 * len(columns))
  wide = values.shape[1] * float(np.clip(280 / values.shape[1], 4, 30))
  tall = len(rows) * float(np.clip(280 / len(rows), 4, 21))
  every = max(1, -(-len(rows) // 16))
  with figure.theme():
    fig = figure.new(left + max(wide, 60) + 8, tall + 32)
    ax = figure.axes(fig, left, 4, wide, tall)
    _image(ax, values, limits, colors)
    last = values.shape[1] - 1
    ax.set_xticks([0, last] if last else [0])
    ax.set_yticks(
        range(0, len(rows), every), labels[::every], fontsize=10.5,
        color=figure.INK,
    )
    ax.tick_params(length=0, pad=4)
    _write(fig, left - 4, tall + 20, columns, size=10, align='right')
    return figure.to_svg(fig, description, scale=0.9)


def color_bar(
    limits: tuple[float, float], quantity: str, colors: str = 'viridis'
) -> str:
  """Inline SVG of the scale of several maps."""
  with figure.theme():
    fig = figure.new(_BAR_WIDTH + 12, 52)
    _colour_bar(fig, 4, 20, limits, quantity, colors=colors)
    return figure.to_svg(fig, f'Color scale of {quantity}', scale=0.9)


def mutual_information(sites: Sequence[routing_records.Site]) -> np.ndarray:
  """Nats for each site, <float64>[len(sites)]."""
  return np.array([statistics.mutual_information(s.load) for s in sites])


def _grid(sites, values):
  """Names, layers and <float64>[len(names), len(layers)] of values."""
  names = list(dict.fromkeys(s.name for s in sites))
  layers = sorted({s.layer for s in sites})
  grid = np.full((len(names), len(layers)), np.nan)
  for site, value in zip(sites, values, strict=True):
    grid[names.index(site.name), layers.index(site.layer)] = value
  return names, layers, grid


def _image(ax, values, limits, colors='viridis') -> None:
  ax.set_facecolor(figure.GRID)  # what is NaN shows the background
  ax.imshow(
      np.ma.masked_invalid(values), aspect='auto', cmap=colors,
      vmin=limits[0], vmax=limits[1],
  )
  ax.grid(visible=False)
  for spine in ax.spines.values():
    spine.set_visible(False)


def _text_colour(value: float, limits: tuple[float, float]) -> str:
  """White on the dark half of viridis, black on the light one."""
  share = (value - limits[0]) / max(limits[1] - limits[0], 1e-12)
  return '#ffffff' if share < 0.6 else '#000001'


def _write(fig, x, y, text, size=11, weight='normal', align='left'):
  """Text at pixels from the top left corner; only bold text is black."""
  width, height = fig.get_size_inches() * 72
  fig.text(
      x / width, 1 - y / height, text, fontsize=size, weight=weight, ha=align,
      color=figure.INK if weight == 'bold' else figure.MUTED,
  )


def _colour_bar(
    fig, left, top, limits, title, expert_counts=(), colors='viridis'
) -> None:
  """A horizontal bar; 1 / count is marked for each of `expert_counts`."""
  ax = figure.axes(fig, left, top, _BAR_WIDTH, 11)
  ax.imshow(
      np.linspace(*limits, 256)[None], aspect='auto', cmap=colors,
      extent=(limits[0], limits[1], 0, 1),
  )
  ax.grid(visible=False)
  for spine in ax.spines.values():
    spine.set_visible(False)
  ax.set_yticks([])
  ax.set_xticks(limits, [f'{v:.3g}' for v in limits])
  ax.tick_params(length=0, pad=4)
  ax.get_xticklabels()[0].set_ha('left')
  ax.get_xticklabels()[1].set_ha('right')
  _write(fig, left, top - 8, title, size=10.5)
  for count in expert_counts:
    x, span = 1 / count, limits[1] - limits[0]
    for y, width, color in ((1.2, 4, '#ffffff'), (1.35, 2, '#d0021b')):
      ax.plot(
          [x, x], [1 - y, y], color=color, linewidth=width, clip_on=False
      )
    # Below the tick labels, kept inside the width of the bar.
    share = (x - limits[0]) / span
    ax.text(
        x, -2.75, f'uniform 1/{count} = {x:.3g}', fontsize=10,
        color=figure.INK, ha='left' if share < 0.5 else 'right',
    )
  ax.set_xlim(limits)
  ax.set_ylim(0, 1)
