# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense layers with several feature axes look flat to an adapter."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import dense_layers

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))


def call_of(module, x):
  """The call of a layer, and what it returns."""
  variables = module.init(jax.random.key(1), x)
  run = lambda x, scale=1.0: scale * module.apply(variables, x)
  return dense_layers.find(module, run, (x,), {}, {}), run(x)


def test_heads_that_are_joined():
  layer, outputs = call_of(nn.DenseGeneral(6, axis=(-2, -1)), X)
  np.testing.assert_array_equal(layer.flat_inputs(), X.reshape(2, 5, 12))
  np.testing.assert_array_equal(layer.flat_outputs(outputs), outputs)
  assert layer.num_heads(outputs) is None
  np.testing.assert_allclose(
      layer.run(2 * layer.flat_inputs()) - outputs,
      outputs - layer.run(0 * layer.flat_inputs()), rtol=1e-5, atol=1e-5
  )


def test_heads_that_are_split():
  layer, outputs = call_of(nn.DenseGeneral((3, 7)), X[:, :, 0])
  flat = layer.flat_outputs(outputs)
  assert flat.shape == (2, 5, 21) and layer.num_heads(outputs) == 3
  np.testing.assert_array_equal(layer.restored(flat, outputs), outputs)
  np.testing.assert_array_equal(layer.run(), outputs)


def test_arguments_besides_the_inputs_are_handed_on():
  run = lambda x, scale: scale * x
  layer = dense_layers.find(nn.Dense(4), run, (X,), {'scale': 3.0}, {})
  np.testing.assert_array_equal(layer.run(), 3 * X)
  ones = jnp.ones_like(X)
  np.testing.assert_array_equal(layer.run(ones), 3 * ones)


class Scaled(nn.Dense):
  """A layer with an argument that has only a name."""

  def __call__(self, inputs, *, scale):
    raise NotImplementedError  # The test has a function of its own.


def test_inputs_may_be_given_by_their_name():
  layer = dense_layers.find(
      Scaled(4), lambda x, scale: scale * x, (), {'scale': 3.0, 'inputs': X}, {}
  )
  np.testing.assert_array_equal(layer.inputs, X)
  np.testing.assert_array_equal(layer.run(2 * X), 3 * 2 * X)
