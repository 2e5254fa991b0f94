# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The adapters of a model as the exported formats see them."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import numpy as np

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import sites as core_sites
from moe_peft.core import trainable
from moe_peft.hf import adapter_specs
from moe_peft.hf import entries
from moe_peft.hf import equivalents
from moe_peft.hf import expert_shapes
from moe_peft.hf import networks
from moe_peft.models import language_model

# Parameters of a router, and what the exported tensors are called.
_ROUTER_PARAMS = {
    'router/kernel': 'router',
    'router/bias': 'router_bias',
    'router/threshold_kernel': 'threshold_router',
    'router/threshold_bias': 'threshold_bias',
    'router/column_scale': 'router_columns',
    'router/scale': 'router_scale',
    **{
        f'router/lambda_{name}': f'lambda_{name}'
        for name in ('kernel', 'bias', 'out', 'offset')
    },
    'router/gates': 'router',
    'router/centroids': 'router',
}
# torch keeps [out, in] where we keep [in, out].
_TRANSPOSED = ('lora_a', 'lora_b', 'router', 'down', 'up')


@dataclasses.dataclass(frozen=True)
class AdaptedSite:
  """One layer with its adapter.

  Attributes:
    path: Path of the layer, unrolled: `encoder/layers_0/mlp/wo`.
    method: Name of the adapter's class.
    spec: What the adapter computes, as `torch_experts.Experts` reads it.
    tensors: The adapter's arrays by the names that `Experts` gives them, our
      axes: `lora_a` [num_experts or 1, in, rank], `lora_b` [num_experts, rank,
      out], `scaling` [num_experts, out], `router` [in, num_experts].
    layer: The layer in transformers.
    block_layers: Those of the block that it stands for, by their names.
  """

  path: str
  method: str
  spec: Mapping[str, Any]
  tensors: Mapping[str, np.ndarray]
  layer: networks.Layer
  block_layers: Mapping[str, networks.Layer] = dataclasses.field(
      default_factory=dict
  )

  @property
  def routed(self) -> bool:
    return self.spec['num_experts'] > 1

  @property
  def linear(self) -> bool:
    """Whether it can be merged into the weights."""
    return not self.routed and self.spec['kind'] in ('low_rank', 'vector')

  @property
  def expert_tensors(self) -> dict[str, np.ndarray]:
    """The tensors without the router's."""
    return {k: v for k, v in self.tensors.items() if not _of_router(k)}

  @property
  def torch_tensors(self) -> dict[str, np.ndarray]:
    """Tensors as `torch_experts.Experts` holds them."""
    return {
        name: array.swapaxes(-1, -2) if name.endswith(_TRANSPOSED) else array
        for name, array in self.tensors.items()
    }


def _of_router(name: str) -> bool:
  return name in _ROUTER_PARAMS.values()


def low_rank(**sizes: Any) -> dict[str, Any]:
  """The spec of one LoRA: `rank`, `alpha`, `in_features`, `out_features`."""
  return {
      'kind': 'low_rank', 'num_experts': 1, 'site_input': False, 'router': None,
      'num_heads': 1, 'shared_a': False, **sizes,
  }


def read(
    model: language_model.LanguageModel,
    params: Mapping[str, np.ndarray],
    layers: Mapping[str, networks.Layer],
) -> list[AdaptedSite]:
  """Reads all adapters of a model.

  Args:
    model: The adapted model.
    params: Its flat parameters, of the layout t5 or scan.
    layers: Its layers in transformers, by path.

  Returns:
    A site for each adapted layer, also for each layer of a scan.

  Raises:
    errors.UserError: If there are no adapters, or one of them computes what
      the formats do not have.
  """
  lengths = {'inputs': 4, 'targets': 4}
  _, traced = adapted_sites.trace(
      lambda: model.init(jax.random.key(0), lengths)
  )
  if not traced:
    raise errors.UserError(
        'The run has no adapters, so there is nothing to export but the model.',
        where='ADAPTER_RULES', remedy='Use --format merged.',
    )
  specs = {
      layer: adapter_specs.read(layer, site, model.module.rules)
      for layer, site in traced.items()
  }
  own = f'{core_sites.ADAPTER_SCOPE}/'  # What is of the model and no layer.
  flat = entries.unstack({
      k: np.asarray(v) for k, v in params.items()
      if trainable.is_adapter(k) and not k.startswith(own)
  })
  grouped: dict[str, dict[str, np.ndarray]] = {}
  for path, array in flat.items():
    layer, _, name = path.partition(f'/{core_sites.ADAPTER_SCOPE}/')
    grouped.setdefault(layer, {})[_ROUTER_PARAMS.get(name, name)] = array
  sites = []
  for path in sorted(grouped, key=_natural):
    # A scanned layer was traced once for the whole stack.
    one_layer = re.sub(r'^(\w+)/layers_\d+/', r'\1/\1/', path)
    known = path if path in specs else one_layer
    spec = dict(specs[known])
    method = spec.pop('method')
    tensors = equivalents.low_rank(
        traced[known].adapter, grouped[path], _layer_params(known, path, params)
    )
    tensors = _at_depth(spec, path, tensors, grouped)
    if router := spec['router']:  # tau_max follows the layer's own experts.
      most = router['max_threshold'] or 1.0 / spec['num_experts']
      spec['router'] = {**router, 'max_threshold': most}
    found = _block_layers(spec, path, layers)
    layer = _layer(path, layers)
    _add_sizes(spec, tensors, layer, found)
    site = AdaptedSite(path, method, spec, tensors, layer, found)
    _check_tensors(site)
    sites.append(site)
  return sites


def _layer_params(known, path, params) -> dict[str, np.ndarray]:
  """The own parameters of a layer, by name; `known` is its path in a scan."""
  own = {f'{known}/{name}': name for name in ('kernel', 'bias')}
  found = entries.unstack({k: params[k] for k in own if k in params})
  return {
      name: found[f'{path}/{name}']
      for name in own.values()
      if f'{path}/{name}' in found
  }


def _natural(text: str) -> list[Any]:
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', text)]


def _layer(
    path: str, layers: Mapping[str, networks.Layer]
) -> networks.Layer:
  if path not in layers:
    raise errors.UserError(
        f'There is an adapter at {path}, and the formats have none at this '
        'layer.', 'SITES',
        'Restrict it to attention projections, wi, wi_0, wi_1, wo and act.',
    )
  return layers[path]


def _at_depth(spec, path, tensors, grouped) -> dict[str, np.ndarray]:
  """Leaves out experts that a layer inside a scan does not have (MoLA)."""
  numbers = spec.pop('experts_by_depth')
  if numbers is None:
    return tensors
  stack, layer, _ = path.split('/', maxsplit=2)
  depth = len({
      x.split('/')[1] for x in grouped if x.startswith(f'{stack}/layers_')
  })
  index = int(layer.removeprefix('layers_'))
  number = numbers[index * len(numbers) // depth]
  spec['num_experts'] = number
  tensors = {k: v for k, v in tensors.items() if k != 'layer_index'}
  if number == 1:
    spec |= {'router': None, 'num_heads': 1}
    tensors = {k: v for k, v in tensors.items() if not _of_router(k)}
  return {
      name: array[..., :number] if _of_router(name) else array[:number]
      for name, array in tensors.items()
  }


def _block_layers(spec, path, layers) -> dict[str, networks.Layer]:
  """The layers of the MLP that a block's experts are copies of."""
  functions = spec.pop('functions')
  if spec['kind'] != 'block':
    return {}
  parent = path.rpartition('/')[0]
  names = ['wi'] if len(functions) == 1 else [
      f'wi_{index}' for index in range(len(functions))
  ]
  found = {x: _layer(f'{parent}/{x}', layers) for x in (*names, 'wo')}
  spec['branches'] = [
      {
          'name': name, 'module': found[name].module.rpartition('.')[2],
          'function': function, 'rows': found[name].rows,
      }
      for name, function in zip(names, functions, strict=True)
  ]
  return found


def _add_sizes(spec, tensors, layer, block_layers) -> None:
  """Adds what the arrays tell to a spec."""
  causal = spec.pop('causal')
  spec.update(layer.part)
  kind = spec['kind']
  if kind in ('low_rank', 'block'):
    prefix = 'wo_' if kind == 'block' else ''
    num_a, spec['in_features'], _ = tensors[f'{prefix}lora_a'].shape
    spec['out_features'] = tensors[f'{prefix}lora_b'].shape[2]
    if not block_layers:
      spec['shared_a'] = num_a < spec['num_experts']
  else:
    name = {'vector': 'scaling', 'bottleneck': 'up_bias'}[kind]
    spec['in_features'] = spec['out_features'] = tensors[name].shape[1]
  router = spec['router']
  if router and router.get('sequence') and causal:
    # The router reads the encoder, whose width may differ.
    spec['router'] = {**router, 'features': tensors['router'].shape[0]}


def _check_tensors(site: AdaptedSite) -> None:
  """Raises errors.UserError for parameters that the formats do not have."""
  expected = expert_shapes.expert_shapes(site.spec)
  if site.spec['kind'] == 'low_rank':  # AdaMix's experts share the other half.
    expected['lora_b'] = site.torch_tensors['lora_b'].shape
  given = {k: v.shape for k, v in site.torch_tensors.items()}
  if given != expected:
    raise adapter_specs.refusal(
        site.path, site.method,
        f'it has the parameters {given}, but should have {expected}.',
        'ADAPTER_RULES',
    )


def methods(sites: Sequence[AdaptedSite]) -> str:
  """Names of the methods in use, for messages and cards."""
  return ' and '.join(sorted({site.method for site in sites}))


def native(sites: Sequence[AdaptedSite]) -> str | None:
  """'LORA' or 'IA3' if PEFT has this method itself, else None."""
  plain = all(x.linear and not x.spec.get('scaled') for x in sites)
  if not plain:
    return None
  kinds = {site.spec['kind'] for site in sites}
  return {('low_rank',): 'LORA', ('vector',): 'IA3'}.get(tuple(kinds))
