# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the adapters of a model are, read from the adapters themselves.

A trace of the model finds every adapter and router; their fields are what gin
made them, so nothing has to be guessed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import inject
from moe_peft.core import sites as core_sites
from moe_peft.core import trainable
from moe_peft.hf import adapter_specs
from moe_peft.hf import entries
from moe_peft.hf import t5_names

_PARAMS = {'low_rank': ('lora_a', 'lora_b'), 'vector': ('scaling',)}
# What is an expert's; all else is the router's.
EXPERT_TENSORS = ('lora_a', 'lora_b', 'scaling')
# Parameters of a router, and what the exported tensors are called.
_ROUTER_PARAMS = {
    'router/kernel': 'router',
    'router/bias': 'router_bias',
    'router/threshold_kernel': 'threshold_router',
    'router/threshold_bias': 'threshold_bias',
}


@dataclasses.dataclass(frozen=True)
class AdaptedSite:
  """One layer with its adapter.

  Attributes:
    path: T5X path of the layer, unrolled: `encoder/layers_0/mlp/wo`.
    method: Name of the adapter's class.
    spec: What the adapter computes, as `torch_experts.Experts` reads it.
    tensors: The adapter's arrays by the names that `Experts` gives them.
      `lora_a` [num_experts or 1, in, rank], `lora_b` [num_experts, rank, out],
      `scaling` [num_experts, out], `router` [in, num_experts].
  """

  path: str
  method: str
  spec: Mapping[str, Any]
  tensors: Mapping[str, np.ndarray]

  @property
  def routed(self) -> bool:
    return self.spec['num_experts'] > 1

  @property
  def hf_module(self) -> str:
    return t5_names.hf_module(self.path)


def read(
    module: inject.AdaptedModule, params: Mapping[str, np.ndarray]
) -> list[AdaptedSite]:
  """Reads all adapters of a model.

  Args:
    module: The adapted model.
    params: Its flat parameters, of the layout t5 or scan.

  Returns:
    A site for each adapted layer, also for each layer of a scan.

  Raises:
    errors.UserError: If there are no adapters, or if one of them depends on
      more than the token it is applied to and therefore cannot be exported.
  """
  ones = jnp.ones((1, 4), jnp.int32)
  _, traced = adapted_sites.trace(
      lambda: module.init(
          jax.random.key(0), ones, ones, ones, enable_dropout=False
      )
  )
  if not traced:
    raise errors.UserError(
        'The run has no adapters, so there is nothing to export but the model.',
        where='ADAPTER_RULES', remedy='Use --format merged.',
    )
  specs = {
      layer: adapter_specs.read(layer, site, module.rules)
      for layer, site in traced.items()
  }
  flat = entries.unstack(
      {k: np.asarray(v) for k, v in params.items() if trainable.is_adapter(k)}
  )
  grouped: dict[str, dict[str, np.ndarray]] = {}
  for path, array in flat.items():
    layer, _, name = path.partition(f'/{core_sites.ADAPTER_SCOPE}/')
    grouped.setdefault(layer, {})[_ROUTER_PARAMS.get(name, name)] = array
  sites = []
  for layer in sorted(grouped, key=_natural):
    # A scanned layer was traced once for the whole stack.
    one_layer = re.sub(r'^(\w+)/layers_\d+/', r'\1/\1/', layer)
    spec = specs[layer if layer in specs else one_layer]
    sites.append(_site(layer, spec, grouped[layer]))
  return sites


def _natural(text: str) -> list[Any]:
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', text)]


def _site(
    layer: str, spec: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> AdaptedSite:
  """Puts the options and the arrays of a layer together."""
  spec = dict(spec)
  method, router = spec.pop('method'), spec['router'] or {}
  expected = set(_PARAMS[spec['kind']])
  if router.get('selection', 'uniform') != 'uniform':
    expected.add('router')
  if router.get('selection') == 'threshold':
    expected |= {'threshold_router', 'threshold_bias'}
  if router.get('balancing_bias'):
    expected.add('router_bias')
  if 'layer_index' in tensors:
    raise adapter_specs.refusal(
        layer, method,
        'its number of experts depends on the layer, inside one scanned layer.',
        'SCAN_LAYERS', 'Train with SCAN_LAYERS = False.',
    )
  if set(tensors) != expected:
    raise adapter_specs.refusal(
        layer, method,
        f'it has the parameters {sorted(tensors)}, but should have '
        f'{sorted(expected)}.', 'ADAPTER_RULES',
    )
  if spec['kind'] == 'low_rank':
    num_a, spec['in_features'], _ = tensors['lora_a'].shape
    spec['out_features'] = tensors['lora_b'].shape[2]
    spec['shared_a'] = num_a < spec['num_experts']
  else:
    spec['in_features'] = spec['out_features'] = tensors['scaling'].shape[1]
  return AdaptedSite(layer, method, spec, tensors)


def one_expert(
    site: AdaptedSite, tensors: Mapping[str, np.ndarray], **options: Any
) -> AdaptedSite:
  """The site with one expert of these arrays: a LoRA or an (IA)^3."""
  return dataclasses.replace(
      site,
      method={'low_rank': 'LoRA', 'vector': 'IA3'}[site.spec['kind']],
      spec={**site.spec, 'num_experts': 1, 'router': None, 'shared_a': False,
            **options},
      tensors={k: np.asarray(v, np.float32) for k, v in tensors.items()},
  )


def methods(sites: Sequence[AdaptedSite]) -> str:
  """Names of the methods in use, for messages and cards."""
  return ' and '.join(sorted({site.method for site in sites}))


def native(sites: Sequence[AdaptedSite]) -> str | None:
  """'LORA' or 'IA3' if PEFT has this method itself, else None."""
  if any(site.routed for site in sites):
    return None
  kinds = {site.spec['kind'] for site in sites}
  return {('low_rank',): 'LORA', ('vector',): 'IA3'}.get(tuple(kinds))
