# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`routing.json`: which task uses which expert, site by site."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path

import numpy as np

from moe_peft.runs import json_file
from moe_peft.runs import site_names

FILE = 'routing.json'


@dataclasses.dataclass(frozen=True)
class SiteUsage:
  """What the router of one site does.

  Attributes:
    path: Parameter path of the layer, as `encoder/layers_0/mlp/wo`.
    stack: `encoder` or `decoder`.
    name: The path below the layer, as `mlp/wo`.
    layer: Index of the layer, 0 where the model has none.
    load: Mean combine weights, <float64>[num_tasks, num_experts].
    entropy: Mean entropy of the router for one token divided by
      log(num_experts), <float64>[num_tasks].
    left_behind: Share of tokens without any expert, <float64>[num_tasks].
    chance: Mutual information, in nats, that random tasks stay below in 95 of
      100 cases; NaN where it was not measured.
  """

  path: str
  stack: str
  name: str
  layer: int
  load: np.ndarray
  entropy: np.ndarray
  left_behind: np.ndarray
  chance: float = math.nan

  @property
  def num_experts(self) -> int:
    return self.load.shape[-1]


@dataclasses.dataclass(frozen=True)
class Usage:
  """The tasks, and the sites in the order of the model."""

  tasks: tuple[str, ...]
  sites: tuple[SiteUsage, ...]

  @classmethod
  def of(
      cls,
      tasks: Sequence[str],
      measured: Mapping[str, Mapping[str, np.ndarray]],
  ) -> 'Usage':
    """From what was measured at each site.

    Args:
      tasks: Their names.
      measured: For each path of a site the arrays `load`, `entropy` and
        `left_behind` and the number `chance`, as the attributes of `SiteUsage`.
    """
    sites = []
    for path in sorted(measured, key=site_names.order):
      stack, layer, name = site_names.split(path)
      arrays = {k: np.asarray(x) for k, x in measured[path].items()}
      sites.append(SiteUsage(path, stack, name, layer, **arrays))
    return cls(tuple(tasks), tuple(sites))

  def write(self, folder: Path) -> None:
    by_task = lambda name: [
        [getattr(site, name)[task] for site in self.sites]
        for task in range(len(self.tasks))
    ]
    json_file.write(folder / FILE, {
        'tasks': self.tasks,
        'sites': [
            {
                'path': site.path, 'stack': site.stack, 'layer': site.layer,
                'name': site.name, 'num_experts': site.num_experts,
            }
            for site in self.sites
        ],
        'load': by_task('load'),
        'entropy': by_task('entropy'),
        'left_behind': by_task('left_behind'),
        'chance': [site.chance for site in self.sites],
    })


def read(folder: Path) -> Usage | None:
  """The file of a run; None where there is none, as for one expert.

  Raises:
    errors.UserError: It is damaged.
  """
  if (fields := json_file.read(folder / FILE)) is None:
    return None
  tasks, sites = fields.texts('tasks'), fields.objects('sites')
  if not tasks or not sites:
    raise fields.error('tasks' if sites else 'sites', 'must not be empty')
  shape = len(tasks), len(sites)
  entropy = fields.numbers('entropy', shape)
  # The first files of version 1 lack these two.
  left_behind = fields.numbers('left_behind', shape, np.zeros(shape))
  chance = fields.numbers('chance', shape[1:], np.full(shape[1:], np.nan))
  load = fields.get('load', list)
  if [len(x) if isinstance(x, list) else 0 for x in load] != (
      [len(sites)] * len(tasks)
  ):
    raise fields.error('load', 'must have an entry for each task and site')
  return Usage(tasks, tuple(
      SiteUsage(
          path=site.get('path', str),
          stack=site.get('stack', str),
          name=site.get('name', str),
          layer=site.get('layer', int, 0),
          load=_load(fields, site, [row[i] for row in load]),
          entropy=entropy[:, i],
          left_behind=left_behind[:, i],
          chance=float(chance[i]),
      )
      for i, site in enumerate(sites)
  ))


def _load(fields, site, rows) -> np.ndarray:
  num_experts = site.get('num_experts', int)
  load = fields.as_numbers('load', rows, (len(rows), num_experts))
  if num_experts < 1 or (load < 0).any():
    raise fields.error('load', 'must not be negative')
  return load
