# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of what experts compute, against their outputs written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import expert_losses
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import hydralora
from moe_peft.methods import molora

X = jax.random.normal(jax.random.key(0), (2, 3, 5))
Y = jnp.zeros((2, 3, 4))
TOKENS = tokens_lib.Tokens(valid=jnp.array([[True, True, False], [True] * 3]))


def sown(cls, lora_b):
  adapter = cls(
      site=sites.Site(causal=False), num_experts=3, rank=2,
      losses=(expert_losses.Orthogonality(),),
      router_factory=lambda **k: routing.Router(
          select=selection.TopK(k=2, normalize=True), **k
      ),
  )
  params = adapter.init(jax.random.key(1), X, Y, TOKENS)['params']
  params['lora_b'] = lora_b

  def loss(params):
    _, state = adapter.apply(
        {'params': params}, X, Y, TOKENS, mutable=['intermediates', 'routing']
    )
    value, = state['intermediates']['orthogonality_loss']
    return value.sum(), state['routing']['combine_weights'][0]

  (value, weights), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return value, np.asarray(weights), params, grads


@pytest.mark.slow
def test_orthogonality_is_that_of_the_outputs():
  lora_b = jax.random.normal(jax.random.key(2), (3, 2, 4))
  for cls in (molora.MoLoRA, hydralora.HydraLoRA):
    value, weights, params, _ = sown(cls, lora_b)
    a = np.broadcast_to(params['lora_a'], (3, 5, 2))
    outputs = np.einsum('bli,eir,ero->bleo', X, a, lora_b)
    total = []
    for row, token in np.argwhere(TOKENS.valid):
      y = outputs[row, token]
      used = np.flatnonzero(weights[row, token] > 0)
      pairs = [
          np.sum(((y[e] @ y[f]) / (y[f] @ y[f]) * y[f]) ** 2)
          for e in used for f in used if e != f
      ]
      total.append(np.mean(pairs))
    np.testing.assert_allclose(value, np.mean(total), rtol=1e-3)


@pytest.mark.slow
def test_it_begins_at_zero_with_finite_gradients():
  value, _, _, grads = sown(molora.MoLoRA, jnp.zeros((3, 2, 4)))
  assert value == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
