# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What routers do: sums over the tokens of a batch, site by site.

Every routed adapter sows `combine_weights` in the collection `routing`
(adapter.py). The training log, the statistics of a finished run and the
snapshots are all made of the same sums, so that they mean the same. A site is
named by the path of its layer, `encoder/layers_0/mlp/wo`, in a scan too.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import sites
from moe_peft.core import tokens
from moe_peft.core import trainable

COLLECTION = 'routing'
# Weight of an expert that a layer of a scan has no place for (MoLA).
ABSENT = -1.0
_SOWN = re.compile(rf'(?P<site>.*)/{sites.ADAPTER_SCOPE}/combine_weights')


def combine_weights(
    collection: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """What every site sowed.

  Args:
    collection: The collection `routing`, nested.
    batch: Model features.

  Returns:
    `(weights, valid)` by site, <float32>[batch, length, num_experts] and
    <bool>[batch, length]. The mean over the passes (consistency losses make
    two) and over the routers of a site, where there are several.
  """
  found = {}
  for path, sown in trainable.flatten(collection).items():
    match = _SOWN.fullmatch(path)
    if match is None:
      continue
    site, weights = match['site'], sum(sown) / len(sown)
    stack = 'encoder' if sites.reads_encoder(site) else 'decoder'
    valid = tokens.in_batch(batch, stack)
    for layer, of_layer in trainable.by_layer(site, weights, axis=0).items():
      found[layer] = of_layer, valid
  return found


def row_sums(weights: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """Sums over the real tokens of each row.

  Args:
    weights: <float32>[batch, length, num_experts], `ABSENT` or not negative.
    valid: <bool>[batch, length].

  Returns:
    `load` [batch, num_experts], the weights, see `existing`; `entropy` [batch],
    in units of log(num_experts), of a token's weights divided by their sum;
    `selected` [batch], the experts with a weight; `left_behind` [batch], the
    tokens without any; `tokens` [batch].
  """
  mask = valid.astype(jnp.float32)
  there = jnp.maximum(weights, 0.0)
  shares = there / jnp.maximum(there.sum(-1, keepdims=True), 1e-9)
  entropy = -jax.scipy.special.xlogy(shares, shares).sum(-1)
  number = jnp.maximum((weights[0, 0] >= 0).sum(), 2.0)
  used = (weights > 0).sum(-1)
  return {
      'load': jnp.sum(weights * mask[..., None], axis=1),
      'entropy': (entropy * mask).sum(1) / jnp.log(number),
      'selected': (used * mask).sum(1),
      'left_behind': ((used == 0) * mask).sum(1),
      'tokens': mask.sum(1),
  }


def existing(weights: np.ndarray) -> np.ndarray:
  """Leaves out the experts that a layer does not have.

  Args:
    weights: <float>[..., num_experts], weights of a site or sums of them.
  """
  weights = np.asarray(weights)
  absent = (weights < 0).any(axis=tuple(range(weights.ndim - 1)))
  return weights[..., ~absent]


def choices(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`existing` by site, of the sites that have a choice.

  A layer of a scan with one expert has a router with nothing to choose; outside
  of a scan it has none.

  Args:
    weights: As `existing` takes them, by site.
  """
  there = {site: existing(x) for site, x in weights.items()}
  return {site: x for site, x in there.items() if x.shape[-1] > 1}


def batch_sums(
    collection: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, dict[str, jax.Array]]:
  """The sums of `row_sums` over all rows, by site, without the entropy.

  Every training step computes them, and the logarithms of an entropy would
  cost more than all the rest.
  """
  sums = {}
  for site, sown in combine_weights(collection, batch).items():
    sums[site] = {name: x.sum(0) for name, x in row_sums(*sown).items()}
    del sums[site]['entropy']
  return sums
