# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plots of the tables: bars of the cases, curves of the sweeps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import figure

from benchmarks import tables

# (key, title, factor) of what is drawn, side by side.
BARS = {
    'layer': (('fastest', 'ms', 1e3), ('temp_mib', 'temporary MiB', 1)),
    'step': (('fastest', 's', 1), ('peak_mib', 'peak MiB', 1)),
    'decoder_step': (('fastest', 's', 1), ('peak_mib', 'peak MiB', 1)),
    'decode': (('tokens_per_second', 'tokens/s', 1),),
}
CURVES = (('fastest', 'ms', 1e3), ('temp_mib', 'temporary MiB', 1))


def save(table: tables.Table, path: Path) -> bool:
  """Draws a table; returns whether there is a plot for it."""
  if table.name in BARS:
    fig = _bars(table, BARS[table.name])
  elif table.name == 'scaling':
    fig = _curves(table.rows)
  else:
    return False
  fig.savefig(path, dpi=120)
  return True


def _bars(
    table: tables.Table, quantities: Sequence[tuple[str, str, float]]
) -> figure.Figure:
  height = 1.2 + 0.25 * len(table.rows)
  fig = figure.Figure((6 * len(quantities), height), layout='constrained')
  fig.suptitle(table.title, fontsize=8, wrap=True)
  names = [row['case'] for row in table.rows]
  for axes, (key, title, factor) in zip(
      fig.subplots(1, len(quantities), sharey=True, squeeze=False)[0],
      quantities, strict=True,
  ):
    values = [factor * (row.get(key) or 0) for row in table.rows]
    axes.barh(names, values, color='tab:blue')
    axes.set_xlabel(title)
    axes.invert_yaxis()
  return fig


def _curves(rows: Sequence[Any]) -> figure.Figure:
  sweeps = list(dict.fromkeys(row['sweep'] for row in rows))
  fig = figure.Figure((3 * len(sweeps), 5), layout='constrained')
  grid = fig.subplots(len(CURVES), len(sweeps), squeeze=False)
  for column, sweep in enumerate(sweeps):
    of_sweep = [row for row in rows if row['sweep'] == sweep]
    sizes = [row['size'] for row in of_sweep]
    for axes, (key, title, factor), slope in zip(
        grid[:, column], CURVES, ('time_slope', 'temp_slope'), strict=True
    ):
      values = [factor * row[key] for row in of_sweep]
      axes.loglog(sizes, values, marker='o')
      axes.set_xticks(sizes, sizes, fontsize=7)
      ends = sorted({min(values), max(values)})
      axes.set_yticks(ends, [f'{value:.3g}' for value in ends])
      axes.minorticks_off()
      axes.set_xlabel(sweep)
      axes.set_ylabel(title)
      axes.set_title(_slope(of_sweep[-1].get(slope)), fontsize=9)
  return fig


def _slope(value: float | None) -> str:
  return '' if value is None else f'slope of what is added: {value:.2f}'
