# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads routing.json: which task uses which expert, site by site."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from moe_peft.runs import records

_NONE = np.zeros(0)


@dataclasses.dataclass(frozen=True)
class Site:
  """What one routed site does.

  Attributes:
    path: parameter path of the layer, as `encoder/layers_0/mlp/wo`.
    stack: `encoder` or `decoder`.
    name: the path below the layer, as `mlp/wo`.
    layer: index of the layer, 0 where the model has none.
    load: mean combine weights, <float64>[num_tasks, num_experts].
    entropy: mean entropy of the router for one token divided by
      log(num_experts), <float64>[num_tasks].
    left_behind: share of tokens without any expert, <float64>[num_tasks].
    chance: mutual information, in nats, that random tasks stay below in 95 of
      100 cases; NaN where it was not measured.
  """

  path: str
  stack: str
  name: str
  layer: int
  load: np.ndarray
  entropy: np.ndarray
  left_behind: np.ndarray = dataclasses.field(default_factory=lambda: _NONE)
  chance: float = math.nan

  @property
  def num_experts(self) -> int:
    return self.load.shape[-1]


@dataclasses.dataclass(frozen=True)
class Routing:
  """routing.json: the tasks and the sites in the order of the model."""

  tasks: tuple[str, ...]
  sites: tuple[Site, ...]


def read(path: Path) -> Routing:
  """Reads routing.json and checks that its arrays fit its names."""
  value = records.read_object(path)
  tasks, sites = value.get('tasks'), value.get('sites')
  if not isinstance(tasks, list) or not isinstance(sites, list):
    raise records.malformed(path, '"tasks" and "sites" must be lists')
  if not tasks or not sites:
    raise records.malformed(path, 'it names no task or no site')
  shape = len(tasks), len(sites)
  entropy = _array(path, 'entropy', value, shape)
  # Older runs lack these two.
  left = np.zeros(shape)
  if 'left_behind' in value:
    left = _array(path, 'left_behind', value, shape)
  chance = np.full(len(sites), np.nan)
  if 'chance' in value:
    chance = _array(path, 'chance', value, (len(sites),))
  load = value.get('load')
  if not isinstance(load, list) or len(load) != len(tasks):
    raise records.malformed(path, '"load" must hold one entry for each task')
  read_sites = []
  for index, site in enumerate(sites):
    try:
      num_experts = int(site['num_experts'])
      rows = [load[task][index] for task in range(len(tasks))]
      site_path, layer = str(site['path']), int(site.get('layer') or 0)
      stack, name = str(site['stack']), str(site['name'])
    except (TypeError, KeyError, ValueError, IndexError) as e:
      raise records.malformed(
          path,
          f'site {index} lacks "path", "stack", "layer", "name" or'
          ' "num_experts", or "load" has no entry for it',
      ) from e
    site_load = _array(
        path, 'load', {'load': rows}, (len(tasks), num_experts), site_path
    )
    if num_experts < 1 or (site_load < 0).any():
      raise records.malformed(path, f'"load" of {site_path} is negative')
    read_sites.append(
        Site(
            site_path, stack, name, layer, site_load, entropy[:, index],
            left[:, index], float(chance[index]),
        )
    )
  return Routing(tuple(map(str, tasks)), tuple(read_sites))


def _array(path, key, value, shape, where='') -> np.ndarray:
  """`value[key]` as <float64>[shape]; null and infinity become NaN."""
  try:
    array = np.array(value.get(key), np.float64)
  except (TypeError, ValueError):
    array = np.empty(())
  if array.shape != tuple(shape):
    raise records.malformed(
        path,
        f'"{key}"{" of " + where if where else ""} must be numbers of shape'
        f' {list(shape)}',
    )
  return np.where(np.isfinite(array), array, np.nan)
