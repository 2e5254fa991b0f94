# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The live log of routers: what every site does, and a word of warning."""

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Any

from clu import metric_writers
import numpy as np

from moe_peft.core import observe
from moe_peft.routers import statistics

# So many bad periods in a row make a warning: a router may pass through a bad
# state.
PATIENCE = 3
# The same for an expert without a token: where there are many, one may wait.
IDLE_PATIENCE = 10
# A smaller share of the gradient is rounding: the router gets no gradient.
_NO_GRADIENT = 1e-6


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
    # By what is watched, the periods in a row in which it was bad.
    self._periods: collections.Counter[tuple[Any, ...]] = collections.Counter()

  def log(
      self,
      step: int,
      means: Mapping[str, Mapping[str, np.ndarray]],
      gradients: Mapping[str, np.ndarray],
  ) -> None:
    """Logs a period.

    Args:
      step: Its last step.
      means: For each site, what `observe.batch_sums` adds up, as means over the
        tokens of the period.
      gradients: For each router that trains, its share of the gradient's norm,
        as the mean over the period's steps.
    """
    self._watch_gradients(step, gradients)
    loads = observe.choices({site: x['load'] for site, x in means.items()})
    sites = {site: _rounded(x, means[site]) for site, x in loads.items()}
    if not sites:
      return
    self._write({'step': step, 'sites': sites})
    scalars = {}
    for site, means in sites.items():
      entropy = statistics.normalized_entropy(np.array(means['load']))
      scalars[f'load_entropy/{site}'] = float(entropy)
      scalars[f'tokens_left_behind/{site}'] = means['left_behind']
    self._board.write_scalars(step, scalars)
    self._watch_collapse(step, sites)
    self._watch_idle(step, sites)

  def _lasts(self, holds: bool, patience: int, *what: Any) -> bool:
    """Whether something has just held for so many periods in a row."""
    self._periods[what] = self._periods[what] + 1 if holds else 0
    return self._periods[what] == patience

  def _watch_gradients(
      self, step: int, gradients: Mapping[str, np.ndarray]
  ) -> None:
    """Warns once of routers that the loss does not reach."""
    news = [
        router for router, share in gradients.items()
        if self._lasts(share < _NO_GRADIENT, PATIENCE, 'gradient', router)
    ]
    if news:
      self._warn(
          f'warning: step {step}: no gradient has reached {news[0]}'
          f'{_others(news)} for {PATIENCE} logging periods, so it stays as it '
          'is. Where NUM_SELECTED_EXPERTS = 1, NORMALIZE = True makes every '
          'weight 1: bind NORMALIZE = False, or AUX_LOSS_FACTOR.'
      )

  def _watch_collapse(
      self, step: int, sites: Mapping[str, Mapping[str, Any]]
  ) -> None:
    """Warns once for each time that a router stays collapsed."""
    news = []
    for site, means in sites.items():
      collapsed = statistics.is_collapsed(means['load'], means['selected'])
      if self._lasts(collapsed, PATIENCE, 'collapse', site):
        news.append(site)
    if news:
      means = sites[news[0]]
      number = statistics.effective_experts(means['load'])
      self._warn(
          f'warning: step {step}: the router at {news[0]}{_others(news)} has '
          f'collapsed: for {PATIENCE} logging periods all tokens together have '
          f'used {number:.1f} of {len(means["load"])} experts. A smaller '
          'ROUTER_LEARNING_RATE, or a larger AUX_LOSS_FACTOR, may help.'
      )

  def _watch_idle(
      self, step: int, sites: Mapping[str, Mapping[str, Any]]
  ) -> None:
    """Warns once of experts that get no token, unless a collapse says why."""
    news = collections.defaultdict(list)
    for site, means in sites.items():
      for expert, load in enumerate(means['load']):
        idle = not load and self._periods['collapse', site] < PATIENCE
        if self._lasts(idle, IDLE_PATIENCE, 'idle', site, expert):
          news[site].append(str(expert))
    if news:
      site, experts = next(iter(news.items()))
      self._warn(
          f'warning: step {step}: for {IDLE_PATIENCE} logging periods no token '
          f'has used expert {", ".join(experts)} of the router at {site}'
          f'{_others(news)}, so they do not train. A larger AUX_LOSS_FACTOR '
          'sends them tokens; a smaller NUM_EXPERTS leaves them out.'
      )


def _others(news: Collection[str]) -> str:
  """The words for all sites but the first one."""
  return f' and {len(news) - 1} other sites' if len(news) > 1 else ''


def _rounded(
    load: np.ndarray, means: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Numbers for the log, which has a row a site and period."""
  return {
      'load': [float(f'{x:.5g}') for x in load],
      'selected': round(float(means['selected']), 4),
      'left_behind': round(float(means['left_behind']), 5),
  }
