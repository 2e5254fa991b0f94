# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which task uses which expert: mean combine weights on held-out examples."""

import json
from pathlib import Path
import re
from typing import Any, Iterator, Mapping, Tuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import partitioning
from moe_peft import trainable

_SITE = re.compile(r'(?P<path>.*)/adapter/combine_weights')
# Cross-attention keys and values are made from encoder positions.
_READS_ENCODER = re.compile(
    r'encoder/.*|.*encoder_decoder_attention/(key|value)'
)


def write_routing(
    path: Path,
    model: Any,
    params: Mapping[str, Any],
    batches: Iterator[Tuple[str, Mapping[str, Any]]],
    mesh: jax.sharding.Mesh,
) -> None:
  """Writes `routing.json`; nothing if no adapter has a router.

  Args:
    path: The file.
    model: A `LanguageModel`.
    params: Flat parameters.
    batches: (task, model features), teacher-forced.
    mesh: Where the model runs.
  """
  sums: dict[str, Mapping[str, Any]] = {}
  with partitioning.use_mesh(mesh):
    statistics = jax.jit(
        lambda params, batch: _site_statistics(model, params, batch),
        in_shardings=(None, partitioning.batch_sharding(mesh)),
    )
    for task, batch in batches:
      new = jax.device_get(statistics(params, batch))
      sums[task] = (
          jax.tree.map(np.add, sums[task], new) if task in sums else new
      )
  sites = sorted(next(iter(sums.values()), {}), key=_natural)
  if not sites:
    return
  means = {
      task: {site: load / count for site, (load, _, count) in values.items()}
      for task, values in sums.items()
  }
  entropies = {
      task: {site: h / count for site, (_, h, count) in values.items()}
      for task, values in sums.items()
  }
  num_experts = {s: len(load) for s, load in next(iter(means.values())).items()}
  path.write_text(
      json.dumps({
          'tasks': list(sums),
          'sites': [_describe(s, num_experts[s]) for s in sites],
          'load': [[means[t][s].tolist() for s in sites] for t in sums],
          'entropy': [[float(entropies[t][s]) for s in sites] for t in sums],
      }),
      encoding='utf-8',
  )


def _site_statistics(model, params, batch):
  """{site: (sum of weights [num_experts], sum of entropies, count)}."""
  _, collections = model.apply(
      trainable.unflatten(params), batch, mutable=('routing',)
  )
  statistics = {}
  for path, (weights,) in trainable.flatten(
      collections.get('routing', {})
  ).items():
    match = _SITE.fullmatch(path)
    if match is None:
      continue
    site = match['path']
    tokens = (
        batch['encoder_input_tokens']
        if _READS_ENCODER.fullmatch(site)
        else batch['decoder_target_tokens']
    )
    # Scanned layers come stacked; every layer is a site of its own.
    stacked = re.search(r'/layers_\d+/', site) is None
    layers = weights if stacked else weights[None]
    for layer, layer_weights in enumerate(layers):
      name = _unrolled(site, layer) if stacked else site
      statistics[name] = _sum_over_tokens(layer_weights, tokens > 0)
  return statistics


def _sum_over_tokens(weights, valid):
  """Sums `[batch, length, ..., num_experts]` over valid tokens (and heads)."""
  num_experts = weights.shape[-1]
  shares = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)
  entropy = -jnp.sum(shares * jnp.log(shares + 1e-9), -1)
  if num_experts > 1:
    entropy /= np.log(num_experts)
  units = int(np.prod(weights.shape[2:-1]))
  mask = valid.reshape(valid.shape + (1,) * (weights.ndim - 3))
  return (
      jnp.sum(weights * mask[..., None], tuple(range(weights.ndim - 1))),
      jnp.sum(entropy * mask),
      jnp.maximum(jnp.sum(valid), 1) * units,
  )


def _unrolled(site: str, layer: int) -> str:
  stack, _, rest = site.split('/', maxsplit=2)
  return f'{stack}/layers_{layer}/{rest}'


def _natural(site: str):
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', site)]


def _describe(site: str, num_experts: int) -> dict[str, Any]:
  stack, layer, name = site.split('/', maxsplit=2)
  return {
      'path': site,
      'stack': stack,
      'layer': int(layer.removeprefix('layers_')),
      'name': name,
      'num_experts': num_experts,
  }
