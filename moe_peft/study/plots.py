# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a study: every seed of every method, the best on top."""

from collections.abc import Sequence
import math
from pathlib import Path
import statistics

from moe_peft.evaluation import spread
from moe_peft.study import records
from moe_peft.study import run_rows
from moe_peft.study import tables

_PANELS_IN_A_ROW = 4


def save(
    rows: Sequence[records.Row], path: Path, reference: str | None = None
) -> None:
  """Draws a panel for each mean and each task.

  Dots are seeds, bars their mean and standard deviation; the dashed line is the
  mean of the reference. The bare base, far to the left, is in the title.

  Args:
    rows: As those of `tables.table`, at least one.
    path: The image; its suffix is its format.
    reference: Name of the row with which the others are compared.
  """
  from matplotlib import figure

  panels = _panels(rows)
  score = lambda name: statistics.fmean(
      run_rows.score(row) for row in rows if row['name'] == name
  )
  names = sorted({row['name'] for row in rows}, key=score)
  num_rows = math.ceil(len(panels) / _PANELS_IN_A_ROW)
  fig = figure.Figure(
      (13, num_rows * (1.2 + 0.22 * len(names))), layout='constrained'
  )
  grid = fig.subplots(
      num_rows, min(_PANELS_IN_A_ROW, len(panels)), sharey=True, squeeze=False
  )
  for axes in grid.flat[len(panels):]:
    axes.set_visible(False)
  shown = grid.flat[: len(panels)]
  for axes, panel in zip(shown, panels, strict=True):
    _draw(axes, names, panel, reference)
  fig.savefig(path, dpi=100)


def _panels(rows):
  """(title, score of the base, (name, score) of each run) of each panel."""
  held_out = rows[0]['held_out']
  values = lambda row, column: {
      **tables.means(row[column], held_out), **row[column]
  }
  return [
      (title, base, [(row['name'], values(row, 'adapted')[title])
                     for row in rows])
      for title, base in values(rows[0], 'base').items()
  ]


def _seeds(panel, name: str) -> list[float]:
  return [score for other, score in panel[2] if other == name]


def _draw(axes, names, panel, reference) -> None:
  title, base, _ = panel
  for height, name in enumerate(names):
    seeds = _seeds(panel, name)
    color = 'tab:orange' if name == reference else 'tab:blue'
    width = spread.deviation(seeds) if len(seeds) > 1 else 0.0
    axes.errorbar(
        statistics.fmean(seeds), height, xerr=width, fmt='|', markersize=11,
        color=color, capsize=3,
    )
    axes.plot(seeds, [height] * len(seeds), '.', color=color, alpha=0.5)
  if reference in names:
    axes.axvline(
        statistics.fmean(_seeds(panel, reference)), color='tab:orange',
        linestyle='--', linewidth=1,
    )
  axes.set_title(f'{title} (base {base:.1f})', fontsize=10)
  axes.set_yticks(range(len(names)), names)
  axes.grid(axis='x', alpha=0.3)
