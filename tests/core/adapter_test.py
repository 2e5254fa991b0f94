# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base class: parameters, precision, what is sown."""

import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import adapter as adapter_lib
from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import sites
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.methods import mov
from tests.refusals import refused

SITE = sites.Site(kernel_axis_names=('embed', 'mlp'))
X = jax.random.normal(jax.random.key(0), (2, 5, 6))
Y = jax.random.normal(jax.random.key(1), (2, 5, 8))


def test_one_expert_has_no_router_and_sows_nothing():
  adapter = lora.LoRA(site=SITE)
  variables = adapter.init(jax.random.key(0), X, Y)
  assert set(variables['params']) == {'lora_a', 'lora_b'}
  _, state = adapter.apply(
      variables, X, Y, mutable=['intermediates', 'routing']
  )
  assert not jax.tree.leaves(state)


def test_initialisation_leaves_no_statistics_in_the_state():
  adapter = molora.MoLoRA(site=SITE, num_experts=3)
  variables = adapter.init(jax.random.key(0), X, Y)
  assert set(variables) == {'params', 'params_axes'}


class Shift(adapter_lib.MoeAdapter):
  """The smallest method: experts are numbers that are added."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    shift = self.param_with_axes(
        'shift', nn.initializers.ones, (self.num_experts,), ('expert',)
    )
    weights = self.route(inputs, tokens).combine_weights
    return outputs + (weights @ shift)[..., None]


def test_a_method_is_a_subclass_with_a_call():
  adapter = Shift(site=SITE, num_experts=3)
  variables = adapter.init(jax.random.key(0), X, Y)
  assert variables['params_axes']['shift_axes'].names == ('expert',)
  # Soft weights sum to one, and so do equal shifts.
  np.testing.assert_allclose(adapter.apply(variables, X, Y), Y + 1, rtol=1e-5)


def test_no_expert():
  with refused('NUM_EXPERTS'):
    molora.MoLoRA(site=SITE, num_experts=0).init(jax.random.key(0), X, Y)


def test_layers_without_tokens_take_one_expert():
  pooled, row = (x[:, 0] for x in (X, Y))
  for method in (molora.MoLoRA, mov.MoV):
    adapter = method(site=SITE, num_experts=1)
    got, _ = adapter.init_with_output(jax.random.key(0), pooled, row)
    np.testing.assert_allclose(got, row, rtol=1e-6)
    adapter = method(site=SITE, num_experts=3)
    with refused('SITES', '2 axes', 'one expert'):
      adapter.init(jax.random.key(0), pooled, row)


def test_an_axis_of_one_expert_is_not_sharded():
  for num_experts, want in ((1, 'unmodeled'), (2, 'expert')):
    adapter = molora.MoLoRA(site=SITE, num_experts=num_experts)
    axes = adapter.init(jax.random.key(0), X, Y)['params_axes']
    assert axes['lora_a_axes'].names == (want, 'embed', 'rank')


def test_parameters_and_router_are_float32_in_a_bfloat16_model():
  adapter = molora.MoLoRA(site=SITE, num_experts=3)
  x, y = X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)
  variables = adapter.init(jax.random.key(0), x, y)
  for leaf in jax.tree.leaves(variables['params']):
    assert leaf.dtype == jnp.float32
  outputs, state = adapter.apply(variables, x, y, mutable=['routing'])
  assert outputs.dtype == jnp.bfloat16
  (weights,) = state['routing']['combine_weights']
  assert weights.dtype == jnp.float32
  want = jax.nn.softmax(
      x.astype(jnp.float32) @ variables['params']['router']['kernel']
  )
  np.testing.assert_allclose(weights, want, atol=1e-6)


def test_the_arithmetic_can_be_float32_in_a_bfloat16_model():
  x, y = X.astype(jnp.bfloat16), jnp.zeros_like(Y, jnp.bfloat16)
  make = functools.partial(molora.MoLoRA, site=SITE, num_experts=3)
  params = jax.tree.map(
      lambda p: p + 0.5, make().init(jax.random.key(0), X, Y)['params']
  )
  run = lambda adapter, *args: adapter.apply({'params': params}, *args)
  exact = run(make(), x.astype(jnp.float32), jnp.zeros_like(Y))
  error = lambda out: np.abs(out.astype(jnp.float32) - exact).mean()
  assert error(run(make(dtype=jnp.float32), x, y)) < error(run(make(), x, y))


def test_heads_are_averaged_in_the_routing_collection():
  site = sites.Site(kernel_axis_names=('embed', 'joined_kv'), num_heads=2)
  adapter = mov.MoV(
      site=site,
      num_experts=3,
      router_factory=functools.partial(
          routing.Router, scores=scores.HeadScores()
      ),
  )
  variables = adapter.init(jax.random.key(0), X, Y)
  _, state = adapter.apply(variables, X, Y, mutable=['routing'])
  (weights,) = state['routing']['combine_weights']
  kernel = variables['params']['router']['kernel']
  want = jax.nn.softmax(Y.reshape(2, 5, 2, 4) @ kernel).mean(axis=2)
  np.testing.assert_allclose(weights, want, atol=1e-6)


def test_heads_need_outputs():
  adapter = molora.MoLoRA(
      site=SITE,
      num_experts=3,
      router_factory=functools.partial(
          routing.Router, scores=scores.HeadScores()
      ),
  )
  with refused('scores.HeadScores', 'TokenScores'):
    adapter.init(jax.random.key(0), X, Y)


def test_every_metric_is_sown_once():
  adapter = molora.MoLoRA(site=SITE, num_experts=3)
  variables = adapter.init(jax.random.key(0), X, Y)
  _, state = adapter.apply(variables, X, Y, mutable=['intermediates'])
  sown = traverse_util.flatten_dict(state['intermediates'])
  assert {path[-1] for path in sown} == {
      'auxiliary_loss',
      'router_z_loss',
      'fraction_tokens_left_behind',
      'expert_usage',
      'router_confidence',
      'router_entropy',
      'effective_experts',
  }
  assert all(len(values) == 1 for values in sown.values())
  assert len(losses.collect(state['intermediates'])) == 7


def test_no_router_columns_are_lost_beside_lora_a():
  # The joint matmul of lora_a and the router is the two matmuls.
  adapter = molora.MoLoRA(site=SITE, num_experts=3, alpha=4.0)
  variables = adapter.init(jax.random.key(0), X, Y)
  params = jax.tree.map(lambda p: p + 0.3, variables['params'])
  params['router']['kernel'] *= jnp.array([1.0, 2.0, 3.0])
  got = adapter.apply({'params': params}, X, Y)
  weights = jax.nn.softmax(X @ params['router']['kernel'])
  want = Y + jnp.einsum(
      'ble,bli,eir,ero->blo', weights, X, params['lora_a'], params['lora_b']
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
