# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Further losses of routers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import losses
from moe_peft.core import router_losses
from moe_peft.core import routing
from tests.refusals import refused

PROBS = np.array([
    [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]],
    [[0.05, 0.9, 0.05], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]],
])
VALID = np.array([[True, True, False], [True, True, False]])
REAL = PROBS[VALID]


def routed(probs=PROBS):
  probs = jnp.asarray(probs, jnp.float32)
  return losses.Routed(probs, jnp.log(probs + 1e-9), probs, jnp.array(VALID))


def entropy(p):
  return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)


def jensen_shannon(p, balance=0.98, certainty=0.5):
  h = np.log(p.shape[-1])
  mean = min(entropy(p.mean(0)), balance * h)
  each = np.maximum(entropy(p), certainty * h).mean()
  return max((balance - certainty) * h - (mean - each), 0) / h


WANT = {
    router_losses.Variance(): -((REAL - REAL.mean(0)) ** 2).mean(),
    router_losses.JensenShannon(): jensen_shannon(REAL),
    router_losses.Tsallis(): ((1 - (REAL**1.1).sum(-1)) / 0.1).mean(),
    router_losses.Tsallis(q=2.0): (1 - (REAL**2).sum(-1)).mean(),
}


@pytest.mark.parametrize('loss', WANT, ids=str)
def test_by_hand_without_padding_and_with_finite_gradients(loss):
  loss.check()
  np.testing.assert_allclose(loss(routed()), WANT[loss], rtol=1e-4, atol=1e-6)
  grad = jax.grad(lambda p: loss(routed(p)))(jnp.asarray(PROBS, jnp.float32))
  assert np.isfinite(grad).all()
  assert not np.any(grad[~VALID])


def test_an_expert_that_nobody_uses_leaves_gradients_finite():
  probs = jnp.asarray(PROBS / PROBS[..., :2].sum(-1, keepdims=True))
  probs = probs.at[..., 2].set(0.0)
  for loss in WANT:
    assert np.isfinite(jax.grad(lambda p: loss(routed(p)))(probs)).all()  # noqa: B023


def test_balanced_and_certain_routers_have_no_divergence_to_lose():
  # Each of the four real tokens is sure of an expert, and both are used.
  probs = np.eye(2)[[[0, 1, 0], [0, 1, 0]]] * 0.98 + 0.01
  loss = router_losses.JensenShannon()
  assert loss(routed(probs)) == 0
  assert loss(routed(np.full_like(probs, 0.5))) > 0.4


def test_options_out_of_range_are_refused():
  with refused('router_losses.Tsallis.q'):
    router_losses.Tsallis(q=1.0).check()
  with refused('router_losses.JensenShannon.balance'):
    router_losses.JensenShannon(balance=0.3).check()


@pytest.mark.slow
def test_any_router_sows_what_it_is_given():
  router = routing.Router(3, losses=(router_losses.JensenShannon(),))
  decision, _ = router.apply(
      {'params': {'kernel': jnp.ones((4, 3))}}, jnp.ones((1, 2, 4)),
      mutable=['intermediates'],
  )
  assert 'jensen_shannon_loss' in decision.metrics
