# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole models in float16: what is masked stays masked, and finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.models import t5
from tests.models import decoder_test
from tests.models import t5_test

# Two examples, and padding; a row of padding only.
SEGMENTS = jnp.asarray([[1] * 4 + [2] * 3 + [0] * 2, [0] * 9])
POSITIONS = jnp.asarray([[*range(4), *range(3), 0, 0], [0] * 9])
DECODER = decoder_test.CONFIG.replace(
    layer_pattern=('local', 'global'), window=2, num_layers=2
)


def _tokens(seed, segments=SEGMENTS):
  ids = np.random.default_rng(seed).integers(2, 30, segments.shape)
  return jnp.asarray(ids, jnp.int32) * (segments > 0)


def _decoder(dtype):
  config = DECODER.replace(dtype=dtype)
  run = functools.partial(
      decoder_test.adapted(config).apply, enable_dropout=False,
      decoder_segment_ids=SEGMENTS, decoder_positions=POSITIONS,
  )
  return run, decoder_test.variables(DECODER), lambda x: (x, SEGMENTS)


def _encoder_decoder(dtype):
  config = t5_test.TINY.replace(dtype=dtype)
  network = inject.AdaptedModule(t5.Transformer(config), decoder_test.RULES)
  run = functools.partial(
      network.apply, enable_dropout=False, encoder_segment_ids=SEGMENTS,
      decoder_segment_ids=SEGMENTS, decoder_positions=POSITIONS,
      encoder_positions=POSITIONS,
  )
  x = _tokens(0)
  init = functools.partial(network.init, enable_dropout=False)
  variables = jax.jit(init)(jax.random.key(0), x, x, x)
  return run, {'params': variables['params']}, lambda x: (_tokens(3), x, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    'make', [_decoder, pytest.param(_encoder_decoder, marks=pytest.mark.long)]
)
def test_packed_rows_with_windows_and_padding(make):
  run, variables, arguments = make(jnp.float16)
  wide = make(jnp.float32)[0]

  def loss(params, ids, run):
    logits = run({'params': params}, *arguments(ids))
    return jnp.mean(logits**2, where=(SEGMENTS > 0)[..., None]), logits

  ids = _tokens(1)
  grads, logits = jax.jit(
      lambda params: jax.grad(
          lambda p: loss(p, ids, run), has_aux=True)(params)
  )(variables['params'])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, logits)))
  # The same numbers as in float32, but for rounding.
  expected = jax.jit(lambda p: loss(p, ids, wide)[1])(variables['params'])
  real = np.asarray(SEGMENTS) > 0
  scale = np.abs(expected)[real].max()
  np.testing.assert_allclose(
      logits[real], expected[real], atol=0.02 * scale
  )
  # The second example does not see the first one.
  changed = ids.at[0, :4].set(_tokens(2)[0, :4])
  other = jax.jit(lambda p: loss(p, changed, run)[1])(variables['params'])
  np.testing.assert_array_equal(other[0, 4:7], logits[0, 4:7])
  assert np.abs(other - logits)[0, :4].max() > 0.01 * scale
