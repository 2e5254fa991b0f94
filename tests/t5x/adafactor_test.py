# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's own Adafactor on adapters only."""

from flax import core
from flax import traverse_util
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from moe_peft.core import trainable

adafactor = pytest.importorskip('t5x.adafactor')
optimizer_lib = pytest.importorskip('moe_peft.t5x.optimizer')
pytestmark = pytest.mark.t5x

AXES = {
    'encoder/wo/kernel': ('mlp', 'embed'),
    'encoder/wo/adapter/lora_a': ('expert', 'mlp', 'rank'),
    'encoder/wo/adapter/lora_b': ('expert', 'rank', 'embed'),
    'encoder/wo/adapter/router/kernel': ('mlp', 'unmodeled'),
}
SHAPES = dict(zip(AXES, [(6, 4), (3, 6, 2), (3, 2, 4), (6, 3)], strict=True))


def make(**options):
  """The optimizer as gin makes it, and its state of the parameters."""
  rng = np.random.default_rng(0)
  params = {
      path: rng.normal(size=shape).astype(np.float32)
      for path, shape in SHAPES.items()
  }
  params['encoder/wo/adapter/lora_b'][:] = 0.0
  params = core.freeze(trainable.unflatten(params))
  traversal = traverse_util.ModelParamTraversal(
      optimizer_lib.trainable_filter()
  )
  rules = optimizer_lib.adapter_factor_rules()
  inner = adafactor.Adafactor(logical_factor_rules=rules, **options)
  optimizer_def = optimizer_lib.AdapterMultiOptimizer(((traversal, inner),))
  axes = {path: PartitionSpec(*names) for path, names in AXES.items()}
  optimizer_def.set_param_axes(core.freeze(trainable.unflatten(axes)))
  return optimizer_def.create(params)


def flat(tree):
  return trainable.flatten(core.unfreeze(tree))


def step(optimizer):
  grads = jax.tree.map(
      lambda x: np.linspace(1, 2, x.size, dtype=np.float32).reshape(x.shape),
      optimizer.target,
  )
  apply = lambda optimizer, grads: optimizer.apply_gradient(
      grads, learning_rate=3e-4
  )
  return jax.jit(apply)(optimizer, grads)


def test_nothing_of_an_adapter_is_factored_and_nothing_frozen_has_a_state():
  optimizer = make()
  states = flat(optimizer.state.param_states)
  assert states.pop('encoder/wo/kernel') is None
  for path, state in states.items():
    assert state.v.shape == SHAPES[path], path
    assert state.v_row.shape == state.v_col.shape == (1,)
  new = step(optimizer)
  before, after = flat(optimizer.target), flat(new.target)
  np.testing.assert_array_equal(
      after['encoder/wo/kernel'], before['encoder/wo/kernel']
  )


def test_released_code_moves_by_the_size_of_each_expert():
  """As after 1.1 million steps: only the clip of the update counts."""
  optimizer = make(step_offset=-1_100_000)
  new = step(optimizer)
  before, after = flat(optimizer.target), flat(new.target)
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  for name in ('lora_a', 'lora_b'):
    path = f'encoder/wo/adapter/{name}'
    for old, moved in zip(before[path], after[path], strict=True):
      want = 3e-4 * max(rms(old), 1e-3)
      np.testing.assert_allclose(rms(moved - old), want, rtol=2e-2)


def test_without_parameter_scale_steps_are_absolute():
  optimizer = make(multiply_by_parameter_scale=False)
  new = step(optimizer)
  moved = flat(new.target)['encoder/wo/adapter/lora_b']
  # The first step of Adafactor divides the gradient by itself.
  np.testing.assert_allclose(moved, -3e-4, rtol=1e-3)


def test_axes_of_the_state():
  optimizer = make()
  axes = core.freeze(
      trainable.unflatten({k: PartitionSpec(*v) for k, v in AXES.items()})
  )
  got = optimizer.optimizer_def.derive_logical_axes(optimizer, axes)
  states = trainable.flatten(core.unfreeze(got.state.param_states))
  assert states['encoder/wo/adapter/lora_a'].v == PartitionSpec(
      'expert', 'mlp', 'rank'
  )


def test_a_step_that_is_not_finite_changes_nothing():
  optimizer = step(make())
  grads = jax.tree.map(np.ones_like, optimizer.target)
  bad = jax.tree.map(lambda x: x * np.float32(np.nan), grads)
  apply = lambda optimizer, grads: optimizer.apply_gradient(
      grads, learning_rate=3e-4
  )
  new = jax.jit(apply)(optimizer, bad)
  assert int(new.state.step) == int(optimizer.state.step) + 1
  for old, kept in zip(
      jax.tree.leaves((optimizer.target, optimizer.state.param_states)),
      jax.tree.leaves((new.target, new.state.param_states)), strict=True,
  ):
    np.testing.assert_array_equal(old, kept)
