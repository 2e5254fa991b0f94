# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The three executions are one function, on one device and on eight."""

import dataclasses
import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import capacity
from moe_peft.core import dispatch
from moe_peft.core import expert_buffers
from moe_peft.core import partitioning
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import adamole
from moe_peft.methods import bottleneck
from moe_peft.methods import expert_choice
from moe_peft.methods import hydralora
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import sira
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora
from tests.refusals import refused

BATCH, LENGTH, IN, OUT, NUM_EXPERTS, RANK = 8, 12, 16, 24, 4, 3

SITE = sites.Site(kernel_axis_names=('embed', 'mlp'))
ROUTERS = {
    'soft': {},
    'top-2': dict(select=selection.TopK(k=2, normalize=True)),
    'capacity': dict(
        select=selection.TopK(k=2),
        capacity=capacity.Capacity(capacity_factor=1.0),
    ),
    'capacity, small groups': dict(
        select=selection.TopK(k=2),
        capacity=capacity.Capacity(expert_capacity=1, group_size=4),
    ),
    'expert dropout, capacity': dict(
        select=selection.TopK(k=2, dropout=0.3),
        capacity=capacity.Capacity(capacity_factor=1.0),
    ),
    'threshold': dict(
        scores=adamole.ThresholdScores(), select=adamole.Threshold()
    ),
}
TOKENS = {
    'full': tokens_lib.Tokens(),
    'padded': tokens_lib.Tokens(
        valid=jnp.arange(LENGTH) < jnp.arange(5, 5 + BATCH)[:, None]
    ),
    'packed': tokens_lib.Tokens(
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


@functools.cache
def params_of(router, method=molora.MoLoRA):
  """`some_params`, which are the same for every execution."""
  return some_params(make('all_experts', router, method))


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
  params, _ = params_of(router)
  return jax.jit(functools.partial(loss_and_grads, adapter))(
      params, *arrays(), TOKENS[tokens]
  )


@pytest.mark.parametrize('tokens', ['padded', 'packed'])
@pytest.mark.parametrize('router', ROUTERS)
@pytest.mark.parametrize('execution', ['einsum', 'ragged'])
def test_executions_agree(execution, router, tokens):
  adapter = make(execution, router)
  params, _ = params_of(router)
  got = jax.jit(functools.partial(loss_and_grads, adapter))(
      params, *arrays(), TOKENS[tokens]
  )
  assert_close(got, reference(router, tokens))


@pytest.mark.slow
def test_agreement_covers_drops():
  # Otherwise the test above would not see a wrong treatment of drops.
  adapter = make('all_experts', 'capacity')
  params, _ = params_of('capacity')
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


MESHES = {
    '8x1x1': (1, 1), '2x4x1': (4, 1), '2x2x2': (2, 2), '1x2x4': (2, 4)
}


def sharded(execution, router, tokens, mesh):
  """Returns the jitted function and its sharded arguments."""
  adapter = make(execution, router)
  params, axes = params_of(router)
  shardings = partitioning.param_shardings(axes, mesh)
  flat = traverse_util.flatten_dict(params, sep='/')
  params = traverse_util.unflatten_dict(
      {k: jax.device_put(x, shardings[k]) for k, x in flat.items()}, sep='/'
  )
  batch = partitioning.batch_sharding(mesh)
  args = jax.device_put((*arrays(), TOKENS[tokens]), batch)
  return jax.jit(functools.partial(loss_and_grads, adapter)), (params, *args)


def test_tokens_take_the_slots_of_an_expert_in_their_order():
  """One group of three tokens, two experts with two slots each."""
  weights = jnp.array([[[0.5, 0.0], [0.0, 0.7], [0.3, 0.2]]])
  mask, combine = expert_buffers.dispatch_arrays(weights, 2)
  slots = np.zeros((1, 3, 2, 2))
  slots[0, 0, 0, 0] = slots[0, 2, 0, 1] = 1  # Expert 0: tokens 0 and 2.
  slots[0, 1, 1, 0] = slots[0, 2, 1, 1] = 1  # Expert 1: tokens 1 and 2.
  np.testing.assert_array_equal(mask, slots)
  np.testing.assert_allclose(combine, slots * weights[..., None])


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES)
@pytest.mark.parametrize('execution', dispatch.EXECUTIONS)
def test_sharded_equals_unsharded(shape, execution):
  # Drops, padding, packing and expert dropout, all at once.
  router, tokens = 'expert dropout, capacity', 'packed'
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


def collectives_of(execution, shape='2x4x1'):
  """Collectives of a compiled step: loss and all gradients."""
  mesh = partitioning.make_mesh(*MESHES[shape])
  with partitioning.use_mesh(mesh):
    function, args = sharded(execution, 'capacity', 'full', mesh)
    return collectives(function.lower(*args).compile().as_text())


# Elements of the arrays that may be gathered: the kernels, not the tokens.
LARGEST_KERNEL = NUM_EXPERTS * RANK * max(IN, OUT)
TOKENS_PER_DATA_SHARD = BATCH // 2 * LENGTH


@pytest.mark.parametrize(
    'shape',
    [
        '2x4x1',
        pytest.param('2x2x2', marks=pytest.mark.slow),
        '1x2x4',
    ],
)
def test_einsum_moves_tokens_by_all_to_all_and_gathers_nothing(shape):
  """Features are split over `model` in the outputs, and stay so in buffers."""
  found = collectives_of('einsum', shape)
  # There and back, in both directions; gradients of kernels are summed over
  # data, products with split features over model.
  assert {kind for kind, _ in found} == {'all-to-all', 'all-reduce'}
  assert len([kind for kind, _ in found if kind == 'all-to-all']) == 4
  for kind, size in found:
    if kind == 'all-reduce':
      assert size < TOKENS_PER_DATA_SHARD * IN, (kind, size)


def test_routing_by_head_gathers_logits_and_no_heads():
  """Heads are split over `model`, and MoV reads keys and values by head."""
  batch, length, heads, size, experts = 4, 16, 8, 32, 2
  mesh = partitioning.make_mesh(*MESHES['1x2x4'])
  router = functools.partial(routing.Router, scores=scores.HeadScores())
  site = sites.Site(
      kernel_axis_names=('embed', 'joined_kv'), num_heads=heads
  )
  adapter = mov.MoV(site=site, num_experts=experts, router_factory=router)
  shapes = lambda *shape: jnp.zeros(shape, jnp.float32)
  given = shapes(batch, length, 3), shapes(batch, length, heads * size)
  params = adapter.init(jax.random.key(0), *given)['params']

  def loss(params, inputs, outputs):
    return adapter.apply({'params': params}, inputs, outputs).sum()

  split = jax.sharding.PartitionSpec('data', None, 'model')
  with partitioning.use_mesh(mesh):
    outputs = jax.device_put(given[1], jax.NamedSharding(mesh, split))
    step = jax.jit(jax.grad(loss, argnums=(0, 2)))
    hlo = step.lower(params, given[0], outputs).compile().as_text()
  gathered = [size for kind, size in collectives(hlo) if kind == 'all-gather']
  assert gathered and max(gathered) <= batch * length * heads * experts


def test_all_experts_moves_kernels_and_no_tokens():
  found = collectives_of('all_experts')
  assert {kind for kind, _ in found} <= {
      'all-gather', 'all-reduce', 'reduce-scatter'
  }
  assert any(kind == 'all-gather' for kind, _ in found)
  assert max(size for _, size in found) <= LARGEST_KERNEL


def shapes_in(jaxpr):
  """Shapes of every value in a jaxpr and in what it calls."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for parameter in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(parameter, 'jaxpr', parameter)
      if hasattr(inner, 'eqns'):
        yield from shapes_in(inner)


def largest(function, *args):
  jaxpr = jax.make_jaxpr(function)(*args)
  return max(int(np.prod(shape)) for shape in shapes_in(jaxpr.jaxpr))


def test_all_experts_never_builds_experts_times_features():
  adapter = make('all_experts', 'capacity')
  params, _ = params_of('capacity')
  function = functools.partial(loss_and_grads, adapter)
  size = largest(function, params, *arrays(), TOKENS['full'])
  # Also going back: nothing is larger than the outputs themselves.
  assert size <= BATCH * LENGTH * OUT

  def published(params, inputs):
    hidden = jnp.einsum('bli,eir->bler', inputs, params['lora_a'])
    return jnp.einsum('bler,ero->bleo', hidden, params['lora_b'])

  # The check can fail: this is the formula of the released code.
  size = largest(jax.jit(published), params, arrays()[0])
  assert size == BATCH * LENGTH * NUM_EXPERTS * OUT


def choice(execution='auto', num_experts=4, rank=4, selected=2, slots=8):
  result = routing.Routing(
      *(jnp.zeros((1, 64, num_experts)),) * 3,
      metrics={},
      num_selected=selected,
      group_size=64,
      expert_capacity=slots,
  )
  return dispatch.choose(execution, result, num_experts, rank)


def test_auto_follows_the_cost_model():
  # Per token and feature: 4 * 4 = 16 against 4 * 8 = 32 slots.
  assert choice() == 'all_experts'
  # 8 experts of rank 64: 512; 8 * 8 slots + 64 / 64 * 64 = 128; 2 * 1064.
  assert choice(num_experts=8, rank=64) == 'einsum'
  # Big experts without a limit: 4096; 64 * 64 slots; 1 * (64 + 1000).
  assert choice(num_experts=64, rank=64, selected=1, slots=64) == 'ragged'
  assert choice('einsum') == 'einsum'
  assert dispatch.choose('auto', None, 1, 4) == 'all_experts'


def test_auto_logs_the_reason_once(caplog):
  dispatch._log_once.cache_clear()
  with caplog.at_level('INFO', logger='absl'):
    for _ in range(3):
      choice(rank=5)
  assert [r.message for r in caplog.records if 'rank 5' in r.message] == [
      'execution = auto: all_experts, the cheapest of all_experts 20, einsum '
      '34.5, ragged 2010 (multiplications per token and feature; 4 experts of '
      'rank 5, groups of 64 tokens, 8 slots).'
  ]


def test_unknown_execution():
  with refused('adapter.MoeAdapter.execution', 'all_experts, einsum, ragged'):
    choice('fastest')


def test_a_mesh_that_does_not_divide():
  mesh = partitioning.make_mesh(4, 1)
  adapter = molora.MoLoRA(site=SITE, num_experts=6)
  inputs, outputs, _ = arrays()
  with partitioning.use_mesh(mesh):
    with refused('NUM_EXPERTS', 'NUM_EXPERT_PARTITIONS = 4'):
      jax.eval_shape(adapter.init, jax.random.key(0), inputs, outputs)


@pytest.mark.slow
@pytest.mark.parametrize('execution', ['einsum', 'ragged'])
@pytest.mark.parametrize(
    'method',
    [hydralora.HydraLoRA, bottleneck.Bottleneck],
    ids=['hydralora', 'bottleneck'],
)
def test_other_methods_agree(execution, method):
  results = []
  for name in ('all_experts', execution):
    router = 'expert dropout, capacity'
    adapter = make(name, router, method)
    params, _ = params_of(router, method)
    results.append(
        jax.jit(functools.partial(loss_and_grads, adapter))(
            params, *arrays(), TOKENS['packed']
        )
    )
  assert_close(*reversed(results))


@pytest.mark.slow
@pytest.mark.parametrize(
    'method',
    [
        adamole.AdaMoLE,
        functools.partial(
            expert_choice.ExpertChoice,
            site=dataclasses.replace(SITE, causal=False),
        ),
        moelora.MoELoRA,
        functools.partial(
            mola.MoLA,
            site=dataclasses.replace(SITE, num_layers=1),
            experts_by_depth=(3,),  # Of 16; the others are masked.
        ),
        mosld.MoSLD,
        sira.SiRA,
        smoe_dropout.SMoEDropout,
        functools.partial(smora.SMoRA, num_experts=16),
    ],
    ids=lambda method: getattr(method, 'func', method).__name__,
)
def test_methods_agree_under_their_own_routers(method):
  fields = {'num_experts': 16, 'site': SITE, **getattr(method, 'keywords', {})}
  method = getattr(method, 'func', method)
  params, _ = some_params(method(execution='all_experts', **fields))
  want, *others = (
      jax.jit(functools.partial(loss_and_grads, adapter))(
          params, *arrays(), TOKENS['padded']
      )
      for adapter in (
          method(execution=name, **fields) for name in dispatch.EXECUTIONS
      )
  )
  for got in others:
    assert_close(got, want)
