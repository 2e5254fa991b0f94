# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The T5X optimizer of the adapters."""

from flax import core
import jax
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from moe_peft.core import site_updates
from moe_peft.core import trainable
from tests import refusals

optimizers = pytest.importorskip('t5x.optimizers')
optimizer_lib = pytest.importorskip('moe_peft.t5x.optimizer')
pytestmark = pytest.mark.t5x

AXES = {
    'encoder/wo/kernel': ('mlp', 'embed'),
    'encoder/wo/adapter/lora_a': ('expert', 'mlp', 'rank'),
    'encoder/wo/adapter/router/kernel': ('mlp', 'unmodeled'),
}
ROUTER_AND_REST = (
    ('.*/router/.*', optax.sgd(1.0)), ('.*', optax.adamw(0.1))
)


def make_params():
  # A negative zero, which adding zero would change.
  params = {
      path: np.full([2 + i for i in range(len(axes))], -0.0, np.float32)
      for path, axes in AXES.items()
  }
  return core.freeze(trainable.unflatten(params))


def flat(tree):
  return trainable.flatten(core.unfreeze(tree))


def test_frozen_parameters_stay_and_have_no_state():
  params = make_params()
  optimizer = optimizer_lib.AdapterOptimizer(ROUTER_AND_REST).create(params)
  step = jax.jit(lambda optimizer, grads: optimizer.apply_gradient(grads))
  new = step(optimizer, jax.tree.map(np.ones_like, params))
  before, after = flat(params), flat(new.target)
  assert np.signbit(after['encoder/wo/kernel']).all()
  np.testing.assert_array_equal(after['encoder/wo/adapter/router/kernel'], -1)
  np.testing.assert_allclose(
      after['encoder/wo/adapter/lora_a'], -0.1, rtol=1e-4
  )
  size = sum(x.size for x in jax.tree.leaves(new.state.param_states) if x.ndim)
  assert size == 2 * before['encoder/wo/adapter/lora_a'].size
  assert int(new.state.step) == 1


def test_updates_of_pairs_come_behind_the_optimizers():
  params = make_params()
  ours = optimizer_lib.AdapterOptimizer(
      ROUTER_AND_REST,
      updates=site_updates.of_each_adapter(
          lambda updates, now: {'lora_a': 16 * updates['lora_a']}
      ),
  )
  grads = jax.tree.map(np.ones_like, params)
  optimizer = ours.create(params)
  after = flat(optimizer.apply_gradient(grads).target)
  np.testing.assert_allclose(
      after['encoder/wo/adapter/lora_a'], -1.6, rtol=1e-4
  )
  assert np.signbit(after['encoder/wo/kernel']).all()
  axes = core.freeze(
      trainable.unflatten({k: PartitionSpec(*v) for k, v in AXES.items()})
  )
  state = ours.derive_logical_axes(optimizer, axes).state_dict()['state']
  moments = flat(state)
  assert sum(path.endswith('lora_a') for path in moments) == 2


def test_axes_of_the_state_are_those_of_t5x():
  axes = core.freeze(
      trainable.unflatten({k: PartitionSpec(*v) for k, v in AXES.items()})
  )
  ours = optimizer_lib.AdapterOptimizer(ROUTER_AND_REST)
  optimizer = ours.create(make_params())
  got = ours.derive_logical_axes(optimizer, axes)
  want = optimizers.OptaxWrapper.derive_logical_axes(ours, optimizer, axes)
  assert got.state_dict() == want.state_dict()
  moments = [
      value
      for path, value in trainable.flatten(got.state_dict()['state']).items()
      if path.endswith('lora_a')
  ]
  assert moments == [PartitionSpec('expert', 'mlp', 'rank')] * 2


def test_adafactor_has_axes():
  """T5X alone knows no axes for its state."""
  ours = optimizer_lib.AdapterOptimizer((('.*', optax.adafactor(0.1)),))
  optimizer = ours.create(make_params())
  axes = core.freeze(
      trainable.unflatten({k: PartitionSpec(*v) for k, v in AXES.items()})
  )
  got = ours.derive_logical_axes(optimizer, axes)
  assert jax.tree.structure(
      got.state_dict(), is_leaf=lambda x: x is None
  ) == jax.tree.structure(optimizer.state_dict(), is_leaf=lambda x: x is None)


def test_weight_decay_leaves_the_number_of_a_layer_alone():
  path = 'encoder/encoder/wo/adapter/layer_index'
  params = core.freeze(trainable.unflatten({path: np.arange(4, dtype='f')}))
  rules = (('.*', optax.adamw(0.1, weight_decay=5.0)),)
  optimizer = optimizer_lib.AdapterOptimizer(rules).create(params)
  new = optimizer.apply_gradient(jax.tree.map(np.zeros_like, params))
  np.testing.assert_array_equal(flat(new.target)[path], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ('options', 'where', 'name'),
    [
        (dict(rules=ROUTER_AND_REST, trainable_regex='x'), 'TRAINABLE_REGEX',
         'encoder/wo'),
        (dict(rules=ROUTER_AND_REST[:1]), 'optimizer.AdapterOptimizer.rules',
         'lora_a'),
    ],
)
def test_wrong_rules(options, where, name):
  with refusals.refused(where, name):
    optimizer_lib.AdapterOptimizer(**options).create(make_params())


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
  params = make_params()
  optimizer = optimizer_lib.AdapterOptimizer(ROUTER_AND_REST).create(params)
  step = jax.jit(lambda optimizer, grads: optimizer.apply_gradient(grads))
  grads = jax.tree.map(np.ones_like, params)
  first = step(optimizer, grads)
  after = step(first, jax.tree.map(lambda x: x * np.float32(bad), grads))
  assert int(after.state.step) == 2
  kept = lambda x: jax.tree.leaves((x.target, x.state.param_states))
  for old, new in zip(kept(first), kept(after), strict=True):
    np.testing.assert_array_equal(old, new)
  assert not np.array_equal(
      flat(step(after, grads).target)['encoder/wo/adapter/router/kernel'],
      flat(after.target)['encoder/wo/adapter/router/kernel'],
  )
