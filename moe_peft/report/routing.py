# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page says of routers."""

from collections.abc import Mapping, Sequence
import math

import numpy as np

from moe_peft.report import tokens as tokens_lib
from moe_peft.routers import statistics
from moe_peft.runs import metrics_files
from moe_peft.runs import run as run_lib
from moe_peft.runs import snapshot_files
from moe_peft.runs import usage_file

_LISTED = 8
_LEAST_NATS = 0.01


class UsageSummary:
  """Numbers of one run's usage; all arrays are <float64>[num_sites].

  Attributes:
    information: Mutual information of task and expert, nats.
    chance: Information that random tasks would show, nats.
    entropy: Mean normalized entropy of the routers over sites and tasks.
    mean_information: Mean over sites.
    dead: Dead experts by site, where there are any.
    num_dead: How many.
    num_experts: Number of experts of all sites together.
    limit: The largest mutual information that there can be, nats.
    most: Indices of the sites with the most information, highest first.
  """

  def __init__(self, usage: usage_file.Usage):
    sites = usage.sites
    self.information = np.array(
        [statistics.mutual_information(site.load) for site in sites]
    )
    self.chance = np.array([site.chance for site in sites])
    self.entropy = mean(np.concatenate([site.entropy for site in sites]))
    self.mean_information = mean(self.information)
    dead = {s.path: statistics.dead_experts(s.load) for s in sites}
    self.dead = {path: experts for path, experts in dead.items() if experts}
    self.num_dead = sum(map(len, dead.values()))
    self.num_experts = sum(site.num_experts for site in sites)
    self.limit = statistics.mutual_information_limit(
        len(usage.tasks), max(site.num_experts for site in sites)
    )
    order = np.argsort(-np.nan_to_num(self.information, nan=-1))
    self.most = [i for i in order if np.isfinite(self.information[i])][:_LISTED]

  @property
  def tasks_differ(self) -> bool:
    """Whether any site tells tasks apart."""
    return bool(self.information[self.most[0]] >= _LEAST_NATS)

  @property
  def above_chance(self) -> tuple[int, int]:
    """Sites that show more than random tasks would, and sites measured."""
    known = np.isfinite(self.chance)
    return int((self.information > self.chance)[known].sum()), int(known.sum())


def mean(values: np.ndarray) -> float:
  """Mean of the finite values; NaN if there are none."""
  values = values[np.isfinite(values)]
  return float(values.mean()) if values.size else math.nan


def span(values: np.ndarray) -> str:
  """'low to high' of the finite values."""
  values = values[np.isfinite(values)]
  if not values.size:
    return ''
  low, high = f'{values.min():.2f}', f'{values.max():.2f}'
  return low if low == high else f'{low} to {high}'


def at_sites(
    sites: Sequence[usage_file.SiteUsage], values: Mapping[str, float]
) -> np.ndarray:
  """Values by path in the order of the sites, NaN where one is missing."""
  return np.array([values.get(site.path, math.nan) for site in sites])


def left_behind(run: run_lib.Run) -> dict[str, np.ndarray]:
  """Shares of tokens without an expert, <float64>[num_sites], by occasion."""
  sites = run.usage.sites
  log = run.router_log.left_behind if run.router_log else {}
  values = {
      'in the last logged period of training': at_sites(
          sites, {site: shares[-1] for site, shares in log.items()}
      ),
      'at evaluation': np.array([s.left_behind.mean() for s in sites]),
  }
  return {when: x for when, x in values.items() if np.isfinite(x).any()}


def collapsed(run: run_lib.Run) -> tuple[str, ...]:
  """A sentence on each router that has collapsed while training."""
  log, sentences = run.router_log, []
  for site, load in log.load.items() if log else ():
    if statistics.is_collapsed(load[-1], log.selected[site][-1]):
      number = statistics.effective_experts(load[-1])
      sentences.append(
          f'The router at {site} has collapsed: in the last logged period all '
          f'tokens together used {number:.1f} of {load.shape[1]} experts.'
      )
  return tuple(sentences)


def over_time(
    runs: Sequence[run_lib.Run], drifts: Sequence['Drift | None']
) -> list[dict[int, metrics_files.Curve]]:
  """Curves by index of the run, without runs that have none.

  Returns:
    Entropy of the load, mean over sites and of the lowest site; share of tokens
    left behind, mean over sites; drift from the first snapshot and from the one
    before, mean over sites.
  """
  entropy = lambda log: [
      statistics.normalized_entropy(load) for load in log.load.values()
  ]
  quantities = (
      lambda log: np.mean(entropy(log), axis=0),
      lambda log: np.min(entropy(log), axis=0),
      lambda log: np.mean(list(log.left_behind.values()), axis=0),
  )
  logs = {i: run.router_log for i, run in enumerate(runs) if run.router_log}
  known = {i: drift for i, drift in enumerate(drifts) if drift}
  return [
      *({i: metrics_files.Curve(log.steps, of(log)) for i, log in logs.items()}
        for of in quantities),
      {i: drift.curve(drift.moved) for i, drift in known.items()},
      {i: drift.curve(drift.stepped, first=1)
       for i, drift in known.items() if len(drift.steps) > 1},
  ]


class Drift:
  """How far tokens have moved to other experts, from snapshot to snapshot.

  Attributes:
    steps: Steps of the snapshots, <int64>[snapshots].
    moved: Distance from the first snapshot, by site, <float64>[snapshots].
    stepped: Distance from the snapshot before, by site, <float64>[snapshots].
    last: The last weights by site, <float16>[rows, length, num_experts].
  """

  def __init__(self, snapshots: snapshot_files.SnapshotFiles):
    self.steps = np.array(snapshots.steps, np.int64)
    self.moved: dict[str, list[float]] = {}
    self.stepped: dict[str, list[float]] = {}
    first = before = None
    for step in snapshots.steps:
      self.last = snapshots.weights(step)
      now = {
          site: tokens_lib.real_tokens(weights, snapshots, site)
          for site, weights in self.last.items()
      }
      first, before = first or now, before or now
      for site, tokens in now.items():
        for drifts, then in ((self.moved, first), (self.stepped, before)):
          drifts.setdefault(site, []).append(_drift(then.get(site), tokens))
      before = now

  def curve(
      self, by_site: Mapping[str, Sequence[float]], first: int = 0
  ) -> metrics_files.Curve:
    """`moved` or `stepped`, mean over sites, from a snapshot on."""
    values = np.mean(list(by_site.values()), axis=0)
    return metrics_files.Curve(self.steps[first:], values[first:])

  def last_moved(self) -> dict[str, float]:
    """How far each site moved from the first snapshot to the last."""
    return {site: drifts[-1] for site, drifts in self.moved.items()}


def _drift(before: np.ndarray | None, after: np.ndarray) -> float:
  if before is None or before.shape != after.shape:
    return math.nan
  return statistics.drift(before, after)
