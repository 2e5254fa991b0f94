# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The three executions are one function, on one device and on eight."""

import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft import capacity
from moe_peft import dispatch
from moe_peft import errors
from moe_peft import inject
from moe_peft import partitioning
from moe_peft import routing
from moe_peft.methods import molora

BATCH, LENGTH, IN, OUT, NUM_EXPERTS, RANK = 8, 12, 16, 24, 4, 3

SITE = inject.Site(kernel_axis_names=('embed', 'mlp'))
ROUTERS = {
    'soft': {},
    'top-2': dict(selection='top_k', num_selected_experts=2, renormalise=True),
    'capacity': dict(
        selection='top_k',
        num_selected_experts=2,
        capacity=capacity.Capacity(capacity_factor=1.0),
    ),
    'capacity, small groups': dict(
        selection='top_k',
        num_selected_experts=2,
        capacity=capacity.Capacity(expert_capacity=1, group_size=4),
    ),
    'expert dropout, capacity': dict(
        selection='top_k',
        num_selected_experts=2,
        gate_dropout=0.3,
        capacity=capacity.Capacity(capacity_factor=1.0),
    ),
    'threshold': dict(selection='threshold', renormalise=True),
}
TOKENS = {
    'full': routing.Tokens(),
    'padded': routing.Tokens(
        valid=jnp.arange(LENGTH) < jnp.arange(5, 5 + BATCH)[:, None]
    ),
    'packed': routing.Tokens(
        valid=jnp.broadcast_to(jnp.arange(LENGTH) < 11, (BATCH, LENGTH)),
        segment_ids=jnp.broadcast_to(
            jnp.array([1] * 5 + [2] * 4 + [3] * 2 + [0]), (BATCH, LENGTH)
        ),
    ),
}


def make(execution, router, method=molora.MoLoRA):
  return method(
      site=SITE,
      num_experts=NUM_EXPERTS,
      rank=RANK,
      execution=execution,
      router_factory=functools.partial(routing.Router, **ROUTERS[router]),
  )


def arrays():
  keys = jax.random.split(jax.random.key(0), 3)
  inputs = jax.random.normal(keys[0], (BATCH, LENGTH, IN))
  outputs = jax.random.normal(keys[1], (BATCH, LENGTH, OUT))
  target = jax.random.normal(keys[2], (BATCH, LENGTH, OUT))
  return inputs, outputs, target


def some_params(adapter):
  """Parameters away from their initial values, where lora_b is zero."""
  inputs, outputs, _ = arrays()
  variables = jax.jit(adapter.init)(jax.random.key(1), inputs, outputs)
  flat = traverse_util.flatten_dict(variables['params'])
  keys = jax.random.split(jax.random.key(2), len(flat))
  params = {
      path: x + 0.3 * jax.random.normal(key, x.shape)
      for key, (path, x) in zip(keys, sorted(flat.items()), strict=True)
  }
  return traverse_util.unflatten_dict(params), variables['params_axes']


def loss_and_grads(adapter, params, inputs, outputs, target, tokens):
  def loss(params, inputs):
    adapted = adapter.apply(
        {'params': params},
        inputs,
        outputs,
        tokens,
        rngs={'dropout': jax.random.key(3)},
    )
    return jnp.sum(adapted * target), adapted

  grads, adapted = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
  return adapted, grads


def assert_close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


@functools.cache
def reference(router, tokens):
  """Result of all_experts on one device, and the dropped fraction."""
  adapter = make('all_experts', router)
  params, _ = some_params(adapter)
  return jax.jit(functools.partial(loss_and_grads, adapter))(
      params, *arrays(), TOKENS[tokens]
  )


@pytest.mark.parametrize('tokens', TOKENS)
@pytest.mark.parametrize('router', ROUTERS)
@pytest.mark.parametrize('execution', ['einsum', 'ragged'])
def test_executions_agree(execution, router, tokens):
  adapter = make(execution, router)
  params, _ = some_params(adapter)
  got = jax.jit(functools.partial(loss_and_grads, adapter))(
      params, *arrays(), TOKENS[tokens]
  )
  assert_close(got, reference(router, tokens))


def test_agreement_covers_drops():
  # Otherwise the test above would not see a wrong treatment of drops.
  adapter = make('all_experts', 'capacity')
  params, _ = some_params(adapter)
  inputs, outputs, _ = arrays()
  _, state = adapter.apply(
      {'params': params},
      inputs,
      outputs,
      TOKENS['packed'],
      rngs={'dropout': jax.random.key(3)},
      mutable=['intermediates', 'routing'],
  )
  (weights,) = state['routing']['combine_weights']
  used = (weights > 0).sum(axis=-1)[:, :11]
  assert (used == 0).any() and (used == 1).any() and (used == 2).any()


MESHES = {'8x1x1': (1, 1), '2x4x1': (4, 1), '2x2x2': (2, 2)}


def sharded(execution, router, tokens, mesh):
  """Returns the jitted function and its sharded arguments."""
  adapter = make(execution, router)
  params, axes = some_params(adapter)
  shardings = partitioning.param_shardings(axes, mesh)
  flat = traverse_util.flatten_dict(params, sep='/')
  params = traverse_util.unflatten_dict(
      {k: jax.device_put(x, shardings[k]) for k, x in flat.items()}, sep='/'
  )
  batch = partitioning.batch_sharding(mesh)
  args = jax.device_put((*arrays(), TOKENS[tokens]), batch)
  return jax.jit(functools.partial(loss_and_grads, adapter)), (params, *args)


@pytest.mark.parametrize('shape', MESHES)
@pytest.mark.parametrize('execution', dispatch.EXECUTIONS)
@pytest.mark.parametrize(
    ('router', 'tokens'),
    [
        ('soft', 'padded'),
        ('capacity', 'packed'),
        ('expert dropout, capacity', 'packed'),
    ],
)
def test_sharded_equals_unsharded(shape, execution, router, tokens):
  mesh = partitioning.make_mesh(*MESHES[shape])
  assert mesh.devices.shape == tuple(int(n) for n in shape.split('x'))
  with partitioning.use_mesh(mesh):
    function, args = sharded(execution, router, tokens, mesh)
    got = function(*args)
  assert_close(jax.device_get(got), reference(router, tokens))


def collectives(hlo):
  """Returns [(kind, elements of the largest result)] of the collectives."""
  found = []
  pattern = r'= (.*?) (all-to-all|all-gather|all-reduce|reduce-scatter|'
  pattern += r'collective-permute)(?:-start)?\('
  for shapes, kind in re.findall(pattern, hlo):
    sizes = [
        int(np.prod([int(n) for n in dims.split(',') if n]))
        for dims in re.findall(r'\w+\[([\d,]*)\]', shapes)
    ]
    found.append((kind, max(sizes)))
  return found
