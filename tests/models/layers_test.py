# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Closed forms of the layers of T5."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import attention
from moe_peft.models import layers


def test_dense_joined_and_separate_kernels_agree():
  inputs = jax.random.normal(jax.random.key(0), (2, 5, 6))
  joined = layers.DenseGeneral((3, 4), kernel_axes=('embed', 'joined_kv'))
  separate = layers.DenseGeneral((3, 4), kernel_axes=('embed', 'heads', 'kv'))
  variables = joined.init(jax.random.key(1), inputs)
  kernel = variables['params']['kernel']
  assert kernel.shape == (6, 12)
  assert variables['params_axes']['kernel_axes'].names == ('embed', 'joined_kv')
  outputs = joined.apply(variables, inputs)
  assert outputs.shape == (2, 5, 3, 4)
  np.testing.assert_allclose(
      outputs,
      separate.apply({'params': {'kernel': kernel.reshape(6, 3, 4)}}, inputs),
      atol=1e-6,
  )
  expected = (np.asarray(inputs) @ np.asarray(kernel)).reshape(2, 5, 3, 4)
  np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_dense_contracts_several_axes():
  inputs = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
  dense = layers.DenseGeneral(
      7, axis=(-2, -1), kernel_axes=('joined_kv', 'embed')
  )
  variables = dense.init(jax.random.key(1), inputs)
  kernel = np.asarray(variables['params']['kernel'])
  assert kernel.shape == (12, 7)
  expected = np.asarray(inputs).reshape(2, 5, 12) @ kernel
  np.testing.assert_allclose(
      dense.apply(variables, inputs), expected, atol=1e-5
  )


@pytest.mark.parametrize('axes', [('embed', 'joined_kv'),
                                  ('embed', 'heads', 'kv')])
def test_dense_initial_variance_is_scale_over_fan_in(axes):
  dense = layers.DenseGeneral(
      (16, 16),
      kernel_axes=axes,
      kernel_scale=0.25,
      kernel_distribution='normal',
  )
  variables = dense.init(jax.random.key(0), jnp.zeros((1, 1, 64)))
  # 16,384 draws: the relative error of the variance is sqrt(2 / n) = 1.1 %.
  np.testing.assert_allclose(
      jnp.var(variables['params']['kernel']), 0.25 / 64, rtol=0.05
  )


@pytest.mark.parametrize(
    'function,expected',
    [
        ('relu', lambda x: max(x, 0.0)),
        ('linear', lambda x: x),
        # The tanh approximation, not the exact error function.
        (
            'gelu',
            lambda x: 0.5
            * x
            * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_activation_closed_form(function, expected):
  values = np.linspace(-3, 3, 13, dtype=np.float32)
  got = layers.Activation(function).apply({}, values)
  np.testing.assert_allclose(got, [expected(v) for v in values], atol=1e-6)


@pytest.mark.parametrize(
    'activations', [('relu',), ('gelu', 'linear'), ('silu', 'linear', 'relu')]
)
def test_mlp_block_names_and_formula(activations):
  block = layers.MlpBlock(8, activations)
  inputs = jax.random.normal(jax.random.key(0), (2, 3, 4))
  params = block.init(jax.random.key(1), inputs)['params']
  wide = len(activations) > 1
  names = [f'wi_{i}' for i in range(len(activations))] if wide else ['wi']
  assert set(params) == {*names, 'wo'}
  hidden = 1.0
  for name, function in zip(names, activations, strict=True):
    hidden *= layers.activate(function, inputs @ params[name]['kernel'])
  np.testing.assert_allclose(
      block.apply({'params': params}, inputs),
      hidden @ params['wo']['kernel'],
      atol=1e-5,
  )


def test_layer_norm_divides_by_root_mean_square():
  inputs = jnp.array([[[3.0, 4.0]], [[-6.0, 8.0]]])
  norm = layers.LayerNorm(epsilon=0.0)
  params = {'scale': jnp.array([1.0, 2.0])}
  # Root mean squares: sqrt(12.5) and sqrt(50).
  expected = inputs / jnp.sqrt(jnp.array([12.5, 50.0]))[:, None, None]
  np.testing.assert_allclose(
      norm.apply({'params': params}, inputs),
      expected * jnp.array([1.0, 2.0]),
      rtol=1e-6,
  )


def test_length_dropout_is_one_mask_per_sequence():
  dropout = layers.length_dropout(0.5, deterministic=False)
  outputs = np.asarray(
      dropout.apply(
          {}, jnp.ones((4, 7, 64)), rngs={'dropout': jax.random.key(0)}
      )
  )
  assert set(np.unique(outputs)) == {0.0, 2.0}
  np.testing.assert_array_equal(outputs, outputs[:, :1].repeat(7, axis=1))
  assert (outputs[0] != outputs[1]).any()


def test_masks_closed_form():
  ids = jnp.array([[1, 1, 2, 0]])
  np.testing.assert_array_equal(
      attention.segment_mask(ids, ids)[0, 0].astype(int),
      [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
  )
  valid = jnp.array([[True, False]])
  np.testing.assert_array_equal(
      attention.pair_mask(ids > 0, valid)[0, 0].astype(int),
      [[1, 0], [1, 0], [1, 0], [0, 0]],
  )
  np.testing.assert_array_equal(
      attention.causal_mask(3)[0, 0].astype(int),
      [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
  )


def test_attention_closed_form():
  """One head with identity kernels: softmax(q k^T + bias) v in NumPy."""
  module = attention.MultiHeadDotProductAttention(num_heads=1, head_dim=3)
  rng = np.random.default_rng(0)
  inputs_q = rng.normal(size=(1, 2, 3)).astype(np.float32)
  inputs_kv = rng.normal(size=(1, 4, 3)).astype(np.float32)
  bias = rng.normal(size=(1, 1, 2, 4)).astype(np.float32)
  mask = np.array([[1, 1, 0, 1], [1, 0, 0, 0]], bool)[None, None]
  identity = {'kernel': jnp.eye(3)}
  params = {name: identity for name in ('query', 'key', 'value', 'out')}
  got = module.apply({'params': params}, inputs_q, inputs_kv, mask, bias)
  logits = inputs_q[0] @ inputs_kv[0].T + bias[0, 0]  # No 1 / sqrt(head_dim).
  weights = np.exp(logits) * mask[0, 0]
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(got[0], weights @ inputs_kv[0], atol=1e-6)
  # The second query sees the first key only.
  np.testing.assert_allclose(got[0, 1], inputs_kv[0, 0], atol=1e-6)


def test_float32_logits_keep_precision_in_bfloat16():
  """Two keys whose logits differ by less than a bfloat16 step at 64."""
  inputs = jnp.array([[[8.0, 0.125]]])
  keys = jnp.array([[[8.0, 0.0], [8.0, 1.0]]])  # Logits 64 and 64.125.
  params = {
      name: {'kernel': jnp.eye(2)} for name in ('query', 'key', 'value', 'out')
  }
  values = {}
  for float32_logits in (False, True):
    module = attention.MultiHeadDotProductAttention(
        1, 2, dtype=jnp.bfloat16, float32_logits=float32_logits
    )
    values[float32_logits] = float(
        module.apply({'params': params}, inputs, keys)[0, 0, 1]
    )
  assert values[False] == 0.5  # The difference is rounded away.
  expected = 1 / (1 + math.exp(-0.125))
  assert abs(values[True] - expected) < 0.004


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_rows_that_see_nothing_stay_finite(dtype):
  """Padding sees nothing, and -1e10 is no number of float16."""
  module = attention.MultiHeadDotProductAttention(2, 4, dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (1, 3, 8), dtype)
  mask = jnp.array([[[[1, 0, 0], [1, 1, 0], [0, 0, 0]]]], bool)
  out, _ = module.init_with_output(jax.random.key(1), x, x, mask)
  assert out.dtype == dtype and jnp.isfinite(out).all()
  # Masked keys count for nothing.
  other = x.at[:, 2].set(7.0)
  changed, _ = module.init_with_output(jax.random.key(1), x, other, mask)
  np.testing.assert_array_equal(out[:, :2], changed[:, :2])
