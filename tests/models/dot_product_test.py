# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ways of attention have one meaning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import attention
from moe_peft.models import dot_product
from tests import refusals

BATCH, LENGTH, HEADS, SIZE = 2, 11, 4, 8
OPTIONS = dot_product.Options(jnp.float32, 'plain', SIZE**-0.5)


def case(kv_heads=2, keys=LENGTH):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), 'float32')
  return (
      normal(BATCH, LENGTH, HEADS, SIZE),
      normal(BATCH, keys, kv_heads, SIZE),
      normal(BATCH, keys, kv_heads, SIZE),
  )


def packed():
  """Two examples and padding, which sees only itself, in causal rows."""
  ids = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 2, [1] * 11])
  mask = attention.segment_mask(ids, ids) & attention.causal_mask(LENGTH)
  return mask & attention.pair_mask(ids > 0, ids > 0)


def bias():
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.standard_normal((1, HEADS, LENGTH, LENGTH)), 'float32')


def window():
  positions = jnp.arange(LENGTH)[None]
  return attention._within(3, positions, LENGTH, attention.causal_mask(LENGTH))


def keep():
  dropped = np.random.default_rng(2).random((BATCH, HEADS, 1, LENGTH)) < 0.3
  return jnp.where(dropped, 0.0, 1 / 0.7)


CASES = {
    'nothing': (None, None, None, {}),
    'packed': (packed, None, None, {}),
    'window': (window, None, None, {}),
    'bias': (packed, bias, None, {'scale': None}),
    'dropout': (packed, None, keep, {}),
    'cap': (packed, None, None, {'softcap': 2.0, 'float32_logits': True}),
}


def run(way, name):
  arrays = [make and make() for make in CASES[name][:3]]
  options = dataclasses.replace(OPTIONS, **CASES[name][3], implementation=way)

  def loss(query, key, value, of_bias):
    mask, _, keep = arrays
    result = dot_product.attend(query, key, value, mask, of_bias, keep, options)
    return jnp.sum(jnp.sin(result)), result

  wanted = (0, 1, 2) if arrays[1] is None else (0, 1, 2, 3)
  grad = jax.value_and_grad(loss, wanted, has_aux=True)
  return grad(*case(), arrays[1])


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_chunks_give_the_same_numbers_and_gradients(monkeypatch, name):
  """In four parts of three queries, of which one is filled up."""
  monkeypatch.setattr(dot_product, 'LEAST_QUERIES', 3)
  monkeypatch.setattr(
      dot_product, 'PART', BATCH * HEADS * LENGTH * LENGTH // 3
  )
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      run('chunked', name), run('plain', name),
  )


@pytest.mark.parametrize('name', ['nothing', 'packed', 'window', 'bias'])
def test_the_kernel_of_jax_is_asked_for_the_same(monkeypatch, name):
  """Its XLA form here: on a CPU there is no kernel."""
  monkeypatch.setattr(dot_product, '_FUSED', 'xla')
  found, expected = run('fused', name), run('plain', name)
  if name in ('packed', 'bias'):  # Padding that sees nothing is its own affair.
    found, expected = (x[0][1][:, :9] for x in (found, expected))
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      found, expected,
  )


def test_a_row_that_sees_nothing_is_no_nan(monkeypatch):
  monkeypatch.setattr(dot_product, 'PART', 1)
  monkeypatch.setattr(dot_product, 'LEAST_QUERIES', 1)
  mask = jnp.zeros((BATCH, 1, LENGTH, LENGTH), bool)
  for way in ('plain', 'chunked'):
    options = dataclasses.replace(OPTIONS, implementation=way)
    result = dot_product.attend(*case(), mask, None, None, options)
    mean = case()[2].mean(1, keepdims=True).repeat(HEADS // 2, 2)
    np.testing.assert_allclose(
        result, np.broadcast_to(mean, result.shape), rtol=1e-4, atol=1e-5
    )


def test_large_probabilities_are_made_in_chunks():
  assert dot_product.choose('auto', 2**25) == 'plain'
  assert dot_product.choose('auto', 2**25 + 1) == 'chunked'
  assert dot_product.choose('plain', 2**30) == 'plain'


def test_parts_do_not_become_thin_where_there_are_many_rows(monkeypatch):
  lengths = []

  def run(function, length, num_parts, *arrays):
    lengths.append(-(-length // num_parts))
    return arrays[0][0]

  monkeypatch.setattr(dot_product.parts, 'run', run)
  options = dataclasses.replace(OPTIONS, implementation='chunked')
  for rows in (2**4, 2**10, 2**16):
    x = jax.ShapeDtypeStruct((rows, 256, 8, 8), jnp.float32)
    jax.eval_shape(
        lambda x: dot_product.attend(x, x, x, None, None, None, options), x
    )
  assert lengths == [128, 16, 16]


def test_the_compiler_allots_less():
  """A row of 512 tokens and 8 heads: 8 MiB of probabilities."""
  shape = jax.ShapeDtypeStruct((1, 512, 8, 8), jnp.float32)

  def temporaries(way):
    options = dataclasses.replace(OPTIONS, implementation=way)

    def loss(query, key, value):
      return jnp.sum(
          dot_product.attend(query, key, value, None, None, None, options)
      )

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*[shape] * 3).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  dot_product.PART, part = 2**18, dot_product.PART
  try:
    assert temporaries('chunked') < temporaries('plain') / 3
  finally:
    dot_product.PART = part


@pytest.mark.slow
def test_fused_is_refused_where_it_cannot_be():
  options = dataclasses.replace(OPTIONS, implementation='fused', softcap=3.0)
  with refusals.refused('ATTENTION', 'It runs on GPUs', 'bound of logits'):
    dot_product.attend(*case(), None, None, None, options)
