# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page says of single experts: their worth and their likeness."""

from collections.abc import Mapping
import math

import markupsafe
import numpy as np

from moe_peft.report import heatmaps
from moe_peft.report import routing
from moe_peft.runs import site_names

_LISTED = 8
_MATRICES = 6


def largest(scores: Mapping[str, np.ndarray]) -> float:
  """The largest absolute score that is finite, the end of the color scale."""
  sizes = np.abs(np.concatenate([np.zeros(1), *scores.values()]))
  return float(sizes[np.isfinite(sizes)].max()) or 1e-6


def ablation_maps(
    scores: Mapping[str, np.ndarray], most: float
) -> list[tuple[str, str, markupsafe.Markup]]:
  """Name, stack and map of layers and experts for each kind of site."""
  groups: dict[tuple[str, str], list[str]] = {}
  for site in scores:
    stack, _, name = site_names.split(site)
    groups.setdefault((stack, name), []).append(site)
  maps = []
  for (stack, name), sites in groups.items():
    values = np.full((len(sites), max(len(scores[s]) for s in sites)), np.nan)
    for row, site in enumerate(sites):
      values[row, : len(scores[site])] = scores[site]
    layers = [f'layer {site_names.split(site)[1]}' for site in sites]
    maps.append((name, stack, heatmaps.matrix(
        layers, values, (-most, most),
        f'Rise of the loss without each expert, {stack} {name}',
    )))
  return maps


def most_needed(
    scores: Mapping[str, np.ndarray],
) -> list[tuple[float, str, int]]:
  """Score, site and index of the experts that are needed most; no NaN."""
  return sorted(
      ((x, site, e) for site, xs in scores.items() for e, x in enumerate(xs)
       if math.isfinite(x)),
      reverse=True,
  )[:_LISTED]


def mean_cosines(cosine: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Mean over pairs of experts by site, most alike first; no NaN."""
  means = {
      site: routing.mean(matrix[~np.eye(len(matrix), dtype=bool)])
      for site, matrix in cosine.items()
  }
  finite = [site for site in means if math.isfinite(means[site])]
  return {site: means[site] for site in sorted(finite, key=lambda s: -means[s])}


def cosine_maps(
    cosine: Mapping[str, np.ndarray], means: Mapping[str, float]
) -> list[tuple[str, str, markupsafe.Markup]]:
  """Site, its mean and the map of its pairs, of the sites most alike."""
  return [
      (site, f'mean {value:.2f}', heatmaps.matrix(
          [str(i) for i in range(len(cosine[site]))], cosine[site],
          (-1.0, 1.0), f'Cosines between the experts of {site}',
      ))
      for site, value in list(means.items())[:_MATRICES]
  ]
