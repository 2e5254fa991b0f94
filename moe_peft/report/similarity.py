# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How alike the experts of a bank are, as a table and as a picture."""

from collections.abc import Mapping, Sequence
import io
from typing import Any

import numpy as np
import rich.table

from moe_peft.report import figure
from moe_peft.routers import similarity


def mean(params: Mapping[str, Any]) -> np.ndarray:
  """Mean over sites of the cosines between what experts add.

  Args:
    params: Flat parameters of the experts.

  Returns:
    <float64>[num_experts, num_experts]; NaN for two experts that no site has
    both of.
  """
  cosines = np.stack(list(similarity.by_site(params).values()) or [[[np.nan]]])
  known = np.isfinite(cosines)
  total = np.where(known, cosines, 0.0).sum(axis=0)
  count = known.sum(axis=0)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def table(names: Sequence[str], values: np.ndarray) -> rich.table.Table:
  """The cosines; columns are numbered as the rows are."""
  result = rich.table.Table(title='Cosines of what experts add, mean of sites')
  result.add_column('expert')
  for index in range(len(values)):
    result.add_column(str(index), justify='right')
  for index, row in enumerate(values):
    cells = ['' if np.isnan(x) else f'{x:+.2f}' for x in row]
    result.add_row(f'{index} {figure.label(names[index])}', *cells)
  return result


def picture(names: Sequence[str], values: np.ndarray) -> str:
  """The same as SVG, blue to red; an empty cell is NaN."""
  import matplotlib
  from matplotlib import figure as mpl_figure

  labels = [figure.label(name) for name in names]
  side = 1.2 + 0.45 * len(labels)
  buffer = io.StringIO()
  with matplotlib.rc_context({
      'svg.hashsalt': 'moe_peft', 'svg.fonttype': 'none',
      'text.parse_math': False,
  }):
    fig = mpl_figure.Figure(figsize=(side + 2, side), layout='constrained')
    ax = fig.add_subplot()
    image = ax.imshow(
        np.ma.masked_invalid(values), vmin=-1, vmax=1, cmap='RdBu_r'
    )
    ticks = range(len(labels))
    ax.set_xticks(ticks, labels, rotation=60, ha='right')
    ax.set_yticks(ticks, labels)
    for (row, column), value in np.ndenumerate(values):
      if np.isfinite(value):
        ax.text(column, row, f'{value:.2f}', ha='center', va='center',
                color='white' if abs(value) > 0.6 else 'black')
    fig.colorbar(image, label='cosine of what two experts add')
    fig.savefig(buffer, format='svg', metadata={'Date': None})
  return buffer.getvalue()
