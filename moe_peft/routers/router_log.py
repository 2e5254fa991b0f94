# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The live log of routers: what every site does, and a word of warning."""

from collections.abc import Callable, Mapping
from typing import Any

from clu import metric_writers
import numpy as np

from moe_peft.routers import statistics

# A warning takes so many periods in a row: a router may pass through such a
# state.
PATIENCE = 3


class RouterLog:
  """Writes the routing of each logging period, site by site.

  `metrics/routers.jsonl` has one row a period: for each site `load`, the mean
  combine weight of every expert, `selected`, the experts that a token uses, and
  `left_behind`, the share of tokens without any. TensorBoard gets the
  normalized entropy of the load and that share. Padding counts nowhere.
  """

  def __init__(
      self,
      write: Callable[[Mapping[str, Any]], None],
      board: metric_writers.MetricWriter,
      warn: Callable[[str], None],
  ):
    """Begins a log.

    Args:
      write: Writes a row.
      board: TensorBoard.
      warn: Shows a line to whoever watches.
    """
    self._write, self._board, self._warn = write, board, warn
    self._periods: dict[str, int] = {}

  def log(
      self, step: int, means: Mapping[str, Mapping[str, np.ndarray]]
  ) -> None:
    """Logs a period.

    Args:
      step: Its last step.
      means: By site, means over the tokens of its steps of what
        `observe.batch_sums` adds up.
    """
    sites = {site: _rounded(of_site) for site, of_site in means.items()}
    if not sites:
      return
    self._write({'step': step, 'sites': sites})
    scalars = {}
    for site, means in sites.items():
      entropy = statistics.normalized_entropy(np.array(means['load']))
      scalars[f'load_entropy/{site}'] = float(entropy)
      scalars[f'tokens_left_behind/{site}'] = means['left_behind']
    self._board.write_scalars(step, scalars)
    self._watch(step, sites)

  def _watch(self, step: int, sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Warns once for each time that a router stays collapsed."""
    news = []
    for site, means in sites.items():
      collapsed = statistics.is_collapsed(means['load'], means['selected'])
      self._periods[site] = self._periods.get(site, 0) + 1 if collapsed else 0
      if self._periods[site] == PATIENCE:
        news.append(site)
    if news:
      means = sites[news[0]]
      number = statistics.effective_experts(means['load'])
      more = f' and {len(news) - 1} other sites' if len(news) > 1 else ''
      self._warn(
          f'warning: step {step}: the router at {news[0]}{more} has collapsed: '
          f'for {PATIENCE} logging periods all tokens together have used '
          f'{number:.1f} of {len(means["load"])} experts. A smaller '
          'ROUTER_LEARNING_RATE, or a larger AUX_LOSS_FACTOR, may help.'
      )


def _rounded(means: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Numbers for the log, which has a row a site and period."""
  return {
      'load': [float(f'{x:.5g}') for x in np.asarray(means['load'])],
      'selected': round(float(means['selected']), 4),
      'left_behind': round(float(means['left_behind']), 5),
  }
