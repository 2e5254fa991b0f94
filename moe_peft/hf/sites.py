# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the adapters of a model are, read from the adapters themselves.

The model is traced once, and every adapter and router that runs is looked at:
their attributes are what gin made them, so nothing has to be guessed.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import adapter as adapter_lib
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import trainable
from moe_peft.hf import names
from moe_peft.methods import adamole
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import sira
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora

# Exact classes: another subclass may compute something else. These differ from
# MoLoRA, with one or several `lora_a`, and MoV only in training and routing.
_KINDS = {
    molora.MoLoRA: 'low_rank',
    lora.LoRA: 'low_rank',
    sira.SiRA: 'low_rank',
    moelora.MoELoRA: 'low_rank',
    hydralora.HydraLoRA: 'low_rank',
    mosld.MoSLD: 'low_rank',
    adamole.AdaMoLE: 'low_rank',
    smora.SMoRA: 'low_rank',
    mola.MoLA: 'low_rank',
    smoe_dropout.SMoEDropout: 'low_rank',
    mov.MoV: 'vector',
    ia3.IA3: 'vector',
}
# It overrides what happens while training only.
_TRAINING_ROUTERS = (smoe_dropout.SMoEDropoutRouter,)
_PARAMS = {'low_rank': ('lora_a', 'lora_b'), 'vector': ('scaling',)}
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
    return names.hf_module(self.path)


def read(
    module: inject.AdaptedModule, params: Mapping[str, np.ndarray]
) -> list[AdaptedSite]:
  """Reads all adapters of a model.

  Args:
    module: The adapted model.
    params: Its flat parameters, of the layout t5 or scan.

  Returns:
    One site for each adapted layer, scanned layers separately.

  Raises:
    errors.UserError: If there are no adapters, or if one of them depends on
      more than the token it is applied to and therefore cannot be exported.
  """
  adapters, routers = _trace(module)
  if not adapters:
    raise errors.UserError(
        'The run has no adapters (ADAPTER_RULES is empty), so there is nothing '
        'to export but the model: use --format merged.'
    )
  specs = {}
  for path, adapter in adapters.items():
    layer = path.removesuffix(f'/{inject.ADAPTER_SCOPE}')
    specs[layer] = _spec(
        layer, adapter, routers.get(f'{path}/router'), module.rules
    )
  flat = names.unstack(
      {k: np.asarray(v) for k, v in params.items() if trainable.is_adapter(k)}
  )
  grouped: dict[str, dict[str, np.ndarray]] = {}
  for path, array in flat.items():
    layer, _, name = path.partition(f'/{inject.ADAPTER_SCOPE}/')
    grouped.setdefault(layer, {})[name] = array
  return [
      _site(layer, tensors, specs)
      for layer, tensors in sorted(grouped.items(), key=_natural)
  ]


def _natural(item) -> list[Any]:
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', item[0])]


def _trace(
    module: nn.Module,
) -> tuple[dict[str, adapter_lib.MoeAdapter], dict[str, routing.Router]]:
  """Runs the model abstractly; returns its adapters and routers by path."""
  adapters, routers = {}, {}

  def look(next_fun, args, kwargs, context):
    seen = context.module
    if context.method_name == '__call__':
      path = '/'.join(seen.path)
      if isinstance(seen, adapter_lib.MoeAdapter):
        adapters[path] = seen
      elif seen.path and inject.ADAPTER_SCOPE in seen.path[:-1]:
        routers[path] = seen
    return next_fun(*args, **kwargs)

  ones = jnp.ones((1, 4), jnp.int32)
  with nn.intercept_methods(look):
    jax.eval_shape(
        lambda rng: module.init(rng, ones, ones, ones, enable_dropout=False),
        jax.random.key(0),
    )
  return adapters, routers


def _spec(layer, adapter, router, rules) -> dict[str, Any]:
  """What an adapter computes; raises errors.UserError if it is not local."""
  method = type(adapter).__name__
  kind = _KINDS.get(type(adapter))
  rule = next(r for r in rules if re.fullmatch(r.path, layer))
  if kind is None or rule.siblings:
    known = ', '.join(cls.__name__ for cls in _KINDS)
    raise errors.UserError(
        f'{method} (at {layer}) cannot be exported; these can: {known}.'
    )
  if rule.site_input and kind == 'low_rank':
    raise errors.UserError(
        f'{method} (at {layer}) changes the input of its layer '
        '(inject.AdapterRule.site_input), which cannot be exported.'
    )
  spec = {
      'method': method,
      'kind': kind,
      'num_experts': adapter.num_experts,
      'site_input': rule.site_input,
      'router': None,
      'num_heads': 1,
  }
  if kind == 'low_rank':
    spec |= {'rank': adapter.rank, 'alpha': float(adapter.alpha)}
  else:
    spec['residual'] = adapter.residual
  if adapter.num_experts > 1:
    spec['router'] = _router_spec(layer, method, router)
    if router.unit == 'head':
      spec['num_heads'] = router.num_heads
  return spec


def _only_options(cls: type) -> bool:
  """Whether a router at evaluation is `routing.Router` with options."""
  if cls in _TRAINING_ROUTERS:
    return True
  return issubclass(cls, routing.Router) and all(
      getattr(cls, name) is function
      for name, function in vars(routing.Router).items()
      if callable(function) and (name == '__call__' or name[:2] != '__')
  )


def _router_spec(layer, method, router) -> dict[str, Any]:
  where = f'{method} (at {layer}) cannot be exported: '
  if not _only_options(type(router)):
    raise errors.UserError(
        f'{where}its router is a {type(router).__name__}, which does more '
        'than to set options of routing.Router.'
    )
  if router.selection == 'expert_choice':
    raise errors.UserError(
        f"{where}routing.Router.selection = 'expert_choice' compares the "
        'tokens of a batch with each other.'
    )
  if router.capacity is not None and router.capacity.at_evaluation:
    raise errors.UserError(
        f'{where}capacity.Capacity.at_evaluation drops tokens depending on '
        'their neighbors. Train with it, and export with '
        '--gin.capacity.Capacity.at_evaluation=False.'
    )
  if router.unit in ('sequence', 'embedding'):
    raise errors.UserError(
        f'{where}routing.Router.unit = {router.unit!r} needs more than the '
        'token it is applied to.'
    )
  selection = router.selection
  return {
      'score': router.score,
      # At evaluation all experts are used, with equal weights.
      'selection': 'uniform' if selection == 'random' else selection,
      'num_selected_experts': router.num_selected_experts,
      'renormalise': router.renormalise,
      'max_threshold': router.max_threshold or 1.0 / router.num_experts,
      'balancing_bias': router.balancing_bias,
      'bias_in_gate': router.bias_in_gate,
  }


def _site(layer, tensors, specs) -> AdaptedSite:
  traced = layer
  if layer not in specs:  # A layer of a scanned stack was traced once for all.
    traced = re.sub(r'^(\w+)/layers_\d+/', r'\1/\1/', layer)
  spec = dict(specs[traced])
  renamed = {_ROUTER_PARAMS.get(name, name): x for name, x in tensors.items()}
  expected = set(_PARAMS[spec['kind']])
  if spec['router'] and spec['router']['selection'] != 'uniform':
    expected.add('router')
    if spec['router']['selection'] == 'threshold':
      expected |= {'threshold_router', 'threshold_bias'}
  if spec['router'] and spec['router']['balancing_bias']:
    expected.add('router_bias')
  if 'layer_index' in renamed:
    raise errors.UserError(
        f'The adapter at {layer} has a number of experts that depends on the '
        'layer, inside one scanned layer; such a run cannot be exported. Train '
        'with SCAN_LAYERS = False.'
    )
  if set(renamed) != expected:
    raise errors.UserError(
        f'The adapter at {layer} has the parameters {sorted(renamed)}, but '
        f'{spec["method"]} has {sorted(expected)}.'
    )
  if spec['kind'] == 'low_rank':
    spec['shared_a'] = renamed['lora_a'].shape[0] < spec['num_experts']
    spec['in_features'] = renamed['lora_a'].shape[1]
    spec['out_features'] = renamed['lora_b'].shape[2]
  else:
    spec['in_features'] = spec['out_features'] = renamed['scaling'].shape[1]
  method = spec.pop('method')
  return AdaptedSite(layer, method, spec, renamed)


def methods(sites: list[AdaptedSite]) -> str:
  """Names of the methods in use, for messages and cards."""
  return ' and '.join(sorted({site.method for site in sites}))


def native(sites: list[AdaptedSite]) -> str | None:
  """'LORA' or 'IA3' if PEFT has this method itself, else None."""
  if any(site.routed for site in sites):
    return None
  kinds = {site.spec['kind'] for site in sites}
  return {('low_rank',): 'LORA', ('vector',): 'IA3'}.get(tuple(kinds))
