# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Heat maps of routers and experts."""

from collections.abc import Mapping, Sequence

import markupsafe
import numpy as np

from moe_peft.report import figure
from moe_peft.runs import usage_file

Limits = tuple[float, float]

_CELL = 17
_GAP = 10
_BAR = 70
_BAR_WIDTH = 280
# A load within 10 % of uniform must not look like a preference.
_LEAST_CONTRAST = 0.1


def load_range(sites: Sequence[usage_file.SiteUsage]) -> Limits:
  """Ends of one color scale for all sites; the uniform value is inside."""
  values = np.concatenate([s.load.ravel() for s in sites])
  values = values[np.isfinite(values)]
  uniform = np.array([1 / s.num_experts for s in sites])
  low = min(values.min(initial=1.0), uniform.min() * (1 - _LEAST_CONTRAST))
  high = max(values.max(initial=0.0), uniform.max() * (1 + _LEAST_CONTRAST))
  # A scale that nearly reaches zero starts there: plain labels.
  return (0.0 if low < 0.1 * high else float(low)), float(high)


def expert_load(
    tasks: Sequence[str],
    sites: Sequence[usage_file.SiteUsage],
    limits: Limits,
    description: str,
) -> markupsafe.Markup:
  """Mean combine weight of each task and expert, for one stack.

  One line for each site name, one panel for each layer; rows are tasks,
  columns experts.

  Args:
    tasks: Names, [num_tasks].
    sites: Sites of one stack; `load` <float64>[num_tasks, num_experts].
    limits: Ends of the color scale (see `load_range`).
    description: Text for screen readers.
  """
  groups: dict[str, list[usage_file.SiteUsage]] = {}
  for site in sorted(sites, key=lambda site: site.layer):
    groups.setdefault(site.name, []).append(site)
  names = [figure.label(task, 22) for task in tasks]
  left = max(12 + 6.6 * max(map(len, names)), 50)  # Room for 'expert'.
  # Panels shrink until a dozen layers fit on a desktop, then the box scrolls.
  room = 900 / max(map(len, groups.values())) - _GAP
  most = max(s.num_experts for s in sites)
  cell = float(np.clip(np.clip(room, 64, 150) / most, 3, 18))
  inner = max(
      sum(s.num_experts * cell + _GAP for s in group)
      for group in groups.values()
  )
  panel = _CELL * len(tasks)
  line = 40 + panel + 30
  size = left + max(inner, _BAR_WIDTH) + 12, line * len(groups) + _BAR
  with figure.new(*size) as fig:
    for row, name in enumerate(dict.fromkeys(s.name for s in sites)):
      top, x = _BAR + line * row + 40, left
      _write(fig, 4, top - 26, name, weight='bold')
      for site in groups[name]:
        width = site.num_experts * cell
        ax = figure.axes(fig, x, top, width, panel)
        first = x == left
        _image(ax, site.load, limits, names if first else None)
        ax.set_title(
            f'layer {site.layer}' if width > 48 else f'{site.layer}',
            fontsize=10, color=figure.MUTED, pad=3,
        )
        x += width + _GAP
      _write(fig, left - 4, top + panel + 13, 'expert', size=10, align='right')
    counts = sorted({s.num_experts for s in sites})
    _color_bar(fig, limits, 'mean combine weight', expert_counts=counts)
    return figure.to_svg(fig, description, scale=0.9)


def site_maps(
    sites: Sequence[usage_file.SiteUsage],
    values: np.ndarray,
    limits: Limits,
    quantity: str,
) -> dict[str, markupsafe.Markup]:
  """A map for each stack of one value for each site, encoder first.

  Rows are site names, columns layers.

  Args:
    sites: The sites.
    values: <float64>[len(sites)]; NaN leaves a cell empty.
    limits: Ends of the color scale.
    quantity: What is shown, for screen readers.
  """
  stacks: dict[str, dict[tuple[str, int], float]] = {}
  for site, value in zip(sites, values, strict=True):
    stacks.setdefault(site.stack, {})[site.name, site.layer] = value
  return {
      stack: _site_map(cells, limits, f'{quantity}, {stack}')
      for stack, cells in sorted(stacks.items(), reverse=True)
  }


def _site_map(
    cells: Mapping[tuple[str, int], float], limits: Limits, description: str
) -> markupsafe.Markup:
  names = list(dict.fromkeys(name for name, _ in cells))
  layers = sorted({layer for _, layer in cells})
  grid = np.array([
      [cells.get((name, layer), np.nan) for layer in layers] for name in names
  ])
  labels = [figure.label(name, 22) for name in names]
  wide = len(layers) * float(np.clip(320 / len(layers), 30, 42))
  left, tall = max(12 + 6.4 * max(map(len, labels)), 50), 21 * len(names)
  with figure.new(left + max(wide, 150) + 8, tall + 28) as fig:
    ax = figure.axes(fig, left, 4, wide, tall)
    _image(ax, grid, limits, labels)
    ax.set_xticks(range(len(layers)), layers, fontsize=11)
    _write(fig, left - 4, tall + 20, 'layer', size=10, align='right')
    for (i, j), value in np.ndenumerate(grid):
      if np.isfinite(value):
        # White on the dark half of viridis, black on the light one.
        share = (value - limits[0]) / max(limits[1] - limits[0], 1e-12)
        ax.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=10,
                color='#ffffff' if share < 0.6 else '#000001')
    return figure.to_svg(fig, description, scale=0.9)


def matrix(
    rows: Sequence[str], values: np.ndarray, limits: Limits, description: str
) -> markupsafe.Markup:
  """A small map of signed values; its columns are experts.

  Args:
    rows: Names, [num_rows].
    values: <float64>[num_rows, num_experts]; NaN leaves a cell empty.
    limits: Ends of the color scale, blue to red.
    description: Text for screen readers.
  """
  labels = [figure.label(name, 22) for name in rows]
  left = max(12 + 6.4 * max(map(len, labels)), 50)
  wide = values.shape[1] * float(np.clip(280 / values.shape[1], 4, 30))
  tall = len(rows) * float(np.clip(280 / len(rows), 4, 21))
  with figure.new(left + max(wide, 60) + 8, tall + 32) as fig:
    ax = figure.axes(fig, left, 4, wide, tall)
    _image(ax, values, limits, labels, 'RdBu_r', max(1, -(-len(rows) // 16)))
    _write(fig, left - 4, tall + 20, 'expert', size=10, align='right')
    return figure.to_svg(fig, description, scale=0.9)


def color_bar(
    limits: Limits, quantity: str, colors: str = 'viridis'
) -> markupsafe.Markup:
  """The scale of several maps."""
  with figure.new(_BAR_WIDTH + 12, 52) as fig:
    _color_bar(fig, limits, quantity, colors)
    return figure.to_svg(fig, f'Color scale of {quantity}', scale=0.9)


def _image(ax, values, limits, labels, colors='viridis', every=1) -> None:
  """An image with names of rows, and the first and last column numbered."""
  ax.set_facecolor(figure.GRID)  # What is NaN shows the background.
  ax.imshow(np.ma.masked_invalid(values), aspect='auto', cmap=colors,
            vmin=limits[0], vmax=limits[1])
  _bare(ax)
  last = values.shape[1] - 1
  ax.set_xticks([0, last] if last else [0])
  ax.tick_params(labelsize=9.5, length=0, pad=4)
  labels = labels or []
  ax.set_yticks(range(0, len(labels), every), labels[::every], fontsize=10.5,
                color=figure.INK)


def _bare(ax) -> None:
  ax.grid(visible=False)
  for spine in ax.spines.values():
    spine.set_visible(False)


def _write(fig, x, y, text, size=11, weight='normal', align='left'):
  """Text at pixels from the top left corner; only bold text is black."""
  width, height = fig.get_size_inches() * 72
  fig.text(
      x / width, 1 - y / height, text, fontsize=size, weight=weight, ha=align,
      color=figure.INK if weight == 'bold' else figure.MUTED,
  )


def _color_bar(fig, limits, title, colors='viridis', expert_counts=()) -> None:
  """A horizontal bar; 1 / count is marked for each of `expert_counts`."""
  ax = figure.axes(fig, 4, 20, _BAR_WIDTH, 11)
  ax.imshow(np.linspace(*limits, 256)[None], aspect='auto', cmap=colors,
            extent=(*limits, 0, 1))
  _bare(ax)
  ax.set_yticks([])
  ax.set_xticks(limits, [f'{limit:.3g}' for limit in limits])
  ax.tick_params(length=0, pad=4)
  for tick, align in zip(ax.get_xticklabels(), ('left', 'right'), strict=True):
    tick.set_ha(align)
  _write(fig, 4, 12, title, size=10.5)
  for count in expert_counts:
    x = 1 / count
    for y, width, color in ((1.2, 4, '#ffffff'), (1.35, 2, '#d0021b')):
      ax.plot([x, x], [1 - y, y], color=color, linewidth=width, clip_on=False)
    # Below the tick labels, kept inside the width of the bar.
    share = (x - limits[0]) / (limits[1] - limits[0])
    ax.text(x, -2.75, f'uniform 1/{count} = {x:.3g}', fontsize=10,
            color=figure.INK, ha='left' if share < 0.5 else 'right')
  ax.set_xlim(limits)
  ax.set_ylim(0, 1)
