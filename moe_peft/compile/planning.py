# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes and costs of a run, by tracing its model with abstract arrays."""

import collections
from collections.abc import Mapping
import inspect
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import dispatch
from moe_peft.core import partitioning
from moe_peft.core import quantized
from moe_peft.core import sites
from moe_peft.core import trainable
from moe_peft.training import memory
from moe_peft.training import subject

Params = Mapping[str, jax.ShapeDtypeStruct]
Sites = Mapping[str, adapted_sites.TracedSite]


def make_plan(run: subject.Subject, num_devices: int) -> dict[str, Any]:
  """Traces the model and adds everything up.

  Args:
    run: The run.
    num_devices: Devices to lay out.

  Returns:
    Numbers and text, ready for JSON: `parameters`, `bytes`, `sites`, `mesh`.

  Raises:
    errors.UserError: For a mesh that does not divide, or whatever the model
      refuses.
  """
  mesh = _mesh(run, num_devices)
  variables, traced = _trace(run)
  params = trainable.flatten(variables['params'])
  trained, frozen = trainable.split(
      params, run.trainable_regex, required=run.trains
  )
  axes = variables['params_axes']
  state = jax.eval_shape(
      lambda params: run.init_optimizer(
          {'params': params, 'params_axes': axes}
      ),
      variables['params'],
  )
  stored = quantized.structs(
      frozen, partitioning.axis_names(axes), run.base_dtype
  )
  groups = collections.Counter()
  for path, x in trained.items():
    if not trainable.is_constant(path):
      groups[_group(path)] += math.prod(x.shape)
  trained_bytes = 4 * trainable.num_params(trained)
  state_bytes = memory.num_bytes(state)
  return {
      'parameters': {
          'total': trainable.num_params(params),
          'trainable': trainable.num_trained(trained),
          'frozen': (
              trainable.num_params(params) - trainable.num_trained(trained)
          ),
          'trainable_by_group': dict(groups.most_common()),
      },
      'bytes': {
          'base': memory.num_bytes(stored),
          'trainable': trained_bytes,
          'optimizer': state_bytes,
          'checkpoint': trained_bytes + state_bytes,
      },
      'sites': _sites(traced, params),
      'mesh': mesh,
      'rows_per_data_partition': run.batch_size // mesh['data'],
  }


def _mesh(run: subject.Subject, num_devices: int) -> dict[str, int]:
  expert, model = run.partitions
  if num_devices % (expert * model):
    raise errors.UserError(
        f'{num_devices} devices cannot be divided by NUM_EXPERT_PARTITIONS * '
        f'NUM_MODEL_PARTITIONS = {expert * model}.',
        '--devices',
    )
  data = num_devices // (expert * model)
  if run.batch_size % (data * expert):
    raise errors.UserError(
        f'The {run.batch_size} rows of a microbatch cannot be divided over '
        f'{data * expert} devices (data x expert).',
        'BATCH_SIZE',
        'Change it, or NUM_EXPERT_PARTITIONS and NUM_MODEL_PARTITIONS.',
    )
  return {'data': data, 'expert': expert, 'model': model}


def _trace(run: subject.Subject) -> tuple[dict[str, Any], Sites]:
  """Runs the forward pass of a training step with shapes alone."""
  arguments = _arguments(run)

  def forward():
    keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    variables = run.module.init(
        keys, *arguments, enable_dropout=True, **run.told
    )
    run.module.apply(
        {'params': variables['params']},
        *arguments,
        enable_dropout=True,
        **run.told,
        rngs={'dropout': keys['dropout']},
        mutable=['intermediates'],
    )
    return variables

  return adapted_sites.trace(forward)


def _arguments(run: subject.Subject) -> list[jax.Array]:
  inputs, targets = (run.feature_lengths[x] for x in ('inputs', 'targets'))
  tokens = lambda length: jnp.ones((run.batch_size, length), jnp.int32)
  call = inspect.signature(type(run.module.module).__call__)
  if 'encoder_input_tokens' in call.parameters:
    return [tokens(inputs), tokens(targets), tokens(targets)]
  return [tokens(inputs + targets)] * 2


def _group(path: str) -> str:
  """Kind of a parameter: routers, lora_a, ...; of the base, its stack."""
  if not trainable.is_adapter(path):
    return f'base: {path.partition("/")[0]}'
  rest = f'/{path}'.rpartition(f'/{sites.ADAPTER_SCOPE}/')[2]
  return rest.split('/')[0] if '/' in rest else rest


def _sites(traced: Sites, params: Params) -> list[dict[str, Any]]:
  """One row for equal sites of all layers of a block.

  `parameters` and multiplications are those of one layer.
  """
  rows: dict[str, dict[str, Any]] = {}
  for layer, site in traced.items():
    scope = f'{layer}/{sites.ADAPTER_SCOPE}/'
    of_site = [x for name, x in params.items() if name.startswith(scope)]
    # Layers of a scanned stack are on axis 1.
    scanned = re.match(r'(.*/)?(\w+)/\2/', f'{layer}/')
    num_layers = of_site[0].shape[1] if scanned else 1
    kernel = params.get(f'{layer}/kernel')
    block, _, name = re.sub(r'layers_\d+', '*', layer).rpartition('/')
    row = {
        'adapter': type(site.adapter).__name__,
        'experts': site.adapter.num_experts,
        'parameters': sum(x.size for x in of_site) // num_layers,
        'frozen_multiplications': kernel.size // num_layers if kernel else 0,
        **_routing(site),
    }
    key = json.dumps([block, row])
    found = rows.setdefault(
        key, {'block': block, 'sites': [], 'layers': 0} | row
    )
    if name not in found['sites']:
      found['sites'].append(name)
    if name == found['sites'][0]:
      found['layers'] += num_layers
  return list(rows.values())


def _routing(site: adapted_sites.TracedSite) -> dict[str, Any]:
  """The execution, and the expected drops."""
  adapter, routing = site.adapter, site.routing
  rank = getattr(adapter, 'rank', None)
  if routing is None or rank is None:  # Vectors are combined, not dispatched.
    return {'execution': 'all_experts', 'drops': 0.0}
  return {
      'execution': dispatch.choose(
          adapter.execution, routing, adapter.num_experts, rank
      ),
      'drops': expected_drops(
          routing.group_size,
          adapter.num_experts,
          routing.num_selected,
          routing.expert_capacity,
      ),
  }


def expected_drops(
    group_size: int, num_experts: int, num_selected: int, capacity: int
) -> float:
  """Share of choices over capacity if all experts are equally likely.

  The tokens of a group that choose an expert are then binomial: each of
  `group_size` does with probability `num_selected / num_experts`.

  Args:
    group_size: Tokens of a capacity group.
    num_experts: Number of experts.
    num_selected: Experts that a token chooses.
    capacity: Tokens of a group that an expert takes.
  """
  load = stats.binom(group_size, num_selected / num_experts)
  tokens = np.arange(capacity + 1, group_size + 1)
  return float(((tokens - capacity) * load.pmf(tokens)).sum() / load.mean())
