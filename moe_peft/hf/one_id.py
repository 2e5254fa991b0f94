# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run whose routers read example ids, as plain LoRAs for one of the ids.

Such a router gives all tokens of an id the same weights, and MTL-LoRA has one
matrix an id. So for one id the experts are exactly one low-rank pair, which
every format can hold.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import id_scores
from moe_peft.core import sites
from moe_peft.core import tokens
from moe_peft.core import trainable
from moe_peft.hf import entries
from moe_peft.hf import trained as trained_lib
from moe_peft.methods import bank
from moe_peft.methods import hydralora
from moe_peft.methods import lora
from moe_peft.methods import moelora_id
from moe_peft.methods import molora
from moe_peft.methods import mtl_lora

_KNOWN = (
    molora.MoLoRA, hydralora.HydraLoRA, moelora_id.MOELoRAOfIds,
    mtl_lora.MTLLoRA, bank.Bank,
)
_LENGTHS = {'inputs': 4, 'targets': 4}


def of(
    trained: trained_lib.Trained, number: int, name: str
) -> trained_lib.Trained:
  """The run for one id.

  Args:
    trained: A run whose adapters are told ids.
    number: The id, from 0.
    name: What the card calls it.

  Raises:
    errors.UserError: If an adapter is told no ids, is more than low-rank
      experts, or has none for this id.
  """
  model = trained.model
  _, traced = adapted_sites.trace(
      lambda: model.init(jax.random.key(0), _LENGTHS)
  )
  if not traced:
    raise errors.UserError(
        'The run has no adapters that are told ids of examples.',
        '--example_id', 'Leave it out.',
    )
  pairs = {}
  for layer, site in traced.items():
    _check(layer, site)
    pairs[layer] = [
        _pair(site, own, number) for own in _own(trained.params, layer)
    ]
  # Sites may use different numbers of experts; zeros fill up their ranks.
  rank = max(x['lora_a'].shape[2] for found in pairs.values() for x in found)
  params = dict(trained.base_params)
  for layer, found in pairs.items():
    for kind, axis in (('lora_a', 2), ('lora_b', 1)):
      path = f'{layer}/{sites.ADAPTER_SCOPE}/{kind}'
      arrays = [_filled(pair[kind], axis, rank) for pair in found]
      stacked = trained.params[path].ndim == 4
      params[path] = (
          np.stack(arrays, entries.SCAN_AXIS) if stacked else arrays[0]
      )
  # An update of scale 1.
  make = functools.partial(lora.LoRA, rank=rank, alpha=float(rank))
  rules = tuple(
      dataclasses.replace(rule, adapter_factory=make)
      for rule in model.module.rules
  )
  module = model.module.clone(rules=rules)
  return dataclasses.replace(
      trained, model=dataclasses.replace(model, module=module), params=params,
      facts={**trained.facts, 'for examples of': f'`{name}`'},
  )


def _check(layer: str, site: adapted_sites.TracedSite) -> None:
  adapter, router = site.adapter, site.router
  name = f'{type(adapter).__name__} (at {layer})'
  if not isinstance(getattr(router, 'scores', None), id_scores.IdScores):
    raise errors.UserError(
        f'{name} is told no ids of examples.', '--example_id', 'Leave it out.'
    )
  fewer = getattr(adapter, 'active', None) or adapter.experts_by_depth
  if type(adapter) not in _KNOWN or fewer:
    raise errors.UserError(
        f'{name} is more than low-rank experts that an id weighs.',
        '--example_id', 'These are exported for one id: '
        f'{", ".join(x.__name__ for x in _KNOWN)}, with all their experts.',
    )


def _own(
    params: Mapping[str, np.ndarray], layer: str
) -> list[dict[str, np.ndarray]]:
  """The arrays of an adapter by name, for each layer of a scan."""
  scope = f'{layer}/{sites.ADAPTER_SCOPE}/'
  own = {
      k.removeprefix(scope): x for k, x in params.items() if k.startswith(scope)
  }
  if own['lora_a'].ndim < 4:
    return [own]
  moved = {k: np.moveaxis(x, entries.SCAN_AXIS, 0) for k, x in own.items()}
  count = len(moved['lora_a'])
  return [{k: x[i] for k, x in moved.items()} for i in range(count)]


def _filled(array: np.ndarray, axis: int, size: int) -> np.ndarray:
  """The array, with zeros at its end."""
  missing = [(0, 0)] * array.ndim
  missing[axis] = (0, size - array.shape[axis])
  return np.pad(array, missing)


def _pair(
    site: adapted_sites.TracedSite, own: Mapping[str, Any], number: int
) -> dict[str, np.ndarray]:
  """`lora_a` [1, in, n] and `lora_b` [1, n, out] of one id, with scale 1."""
  weights = _weights(site.router, own, number)
  lora_a, lora_b = own['lora_a'], own['lora_b'] * site.adapter.scale
  if isinstance(site.adapter, mtl_lora.MTLLoRA):
    lora_a = lora_a @ own['core'][number]
  if len(lora_a) == 1:
    lora_b = np.einsum('e,ero->ro', weights, lora_b)[None]
  else:
    used = np.flatnonzero(weights)
    if not used.size:
      raise errors.UserError(
          'No expert has a weight for examples of this id: they are computed '
          'by the base alone.', '--example_id', 'Take the base as it is.',
      )
    lora_a = np.concatenate(list(lora_a[used]), axis=1)[None]
    lora_b = lora_b[used] * weights[used, None, None]
    lora_b = np.concatenate(list(lora_b), axis=0)[None]
  return {'lora_a': np.float32(lora_a), 'lora_b': np.float32(lora_b)}


def _weights(router: Any, own: Mapping[str, Any], number: int) -> np.ndarray:
  """The weights of the experts, <float32>[num_experts]."""
  params = trainable.unflatten({
      k.removeprefix('router/'): x
      for k, x in own.items() if k.startswith('router/')
  })
  routing = router.clone(parent=None).apply(
      {'params': params}, jnp.zeros((1, 1, own['lora_a'].shape[1])),
      tokens.Tokens(example_ids=jnp.full((1, 1), number)),
  )
  return np.asarray(routing.combine_weights[0, 0])
