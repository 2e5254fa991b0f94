# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LD-MoLE (arXiv 2509.25684): every token decides how many experts it uses.

  weight = sparsegen(logits, lambda) = sparsemax(logits / (1 - lambda))
  lambda = 0.99 + log_sigmoid(relu(inputs @ W + b) @ w + c)

A projection on the simplex takes the place of top-k: experts far below the best
get exactly 0, the more of them the nearer lambda is to 1. From the paper's
code: 8 experts of rank 8, alpha 16, 256 hidden units, c = -2.5, no auxiliary
loss. An expert that a token does not use gets no gradient from it. Ours: each
router has its own network for lambda (the paper shares one among all sites of a
width), b begins at 0 (with the released -2.5 no unit is on at first, and lambda
is a constant), and the router reads its inputs without dropout.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import molora

# 1 - lambda is at least this.
_SMALLEST = 0.01


@dataclasses.dataclass(frozen=True)
class LambdaScores(scores.TokenScores):
  """Logits of the experts, and lambda behind them.

  Attributes:
    hidden: Hidden units of lambda's network.
  """

  hidden: int = 256

  def logits(self, router, inputs, tokens, product):
    logits = super().logits(router, inputs, tokens, product)
    inputs, axis = inputs.astype(jnp.float32), router.reads.axis
    make, width = router.param_with_axes, inputs.shape[-1]
    kernel = make(
        'lambda_kernel', nn.initializers.lecun_normal(), (width, self.hidden),
        (axis, 'unmodeled'),
    )
    bias = make(
        'lambda_bias', nn.initializers.zeros, (self.hidden,), ('unmodeled',)
    )
    out = make(
        'lambda_out', nn.initializers.lecun_normal(), (self.hidden, 1),
        (None, 'unmodeled'),
    )
    offset = make(
        'lambda_offset', nn.initializers.constant(-2.5), (1,), ('unmodeled',)
    )
    value = jax.nn.relu(inputs @ kernel + bias) @ out + offset
    value = 1 - _SMALLEST + jax.nn.log_sigmoid(value)
    return jnp.concatenate([logits, value], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparsegen(selection.Soft):
  """Gates by sparsegen; the last logit is lambda."""

  def probs(self, router, logits, context):
    logits = selection.mask(logits[..., :-1], context.active), logits[..., -1:]
    return sparsegen(*logits)

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    return self.decide(probs, probs, probs > 0)


class LDMoLERouter(routing.Router):
  """As many experts as the projection leaves."""

  scores: Any = LambdaScores()
  select: Any = Sparsegen()


class LDMoLE(molora.MoLoRA):
  """MoLoRA under LD-MoLE's router."""

  num_experts: int = 8
  rank: int = 8
  router_factory: Callable[..., routing.Router] = LDMoLERouter


def sparsegen(logits: jax.Array, value: jax.Array) -> jax.Array:
  """The p of the simplex that minimizes |p - u|^2 - lambda |p|^2.

  Args:
    logits: u, <float32>[..., num_experts].
    value: lambda, <float32>[..., 1], at most 0.99.

  Returns:
    <float32>[..., num_experts], not negative, of sum 1. On the experts that are
    used, dp_e/du_f = ([e = f] - 1 / n) / (1 - lambda), n of them; 0 elsewhere.
  """
  room = 1.0 - value
  fixed = jax.lax.stop_gradient(logits)
  # The experts that are better, and the expert itself.
  upto = selection.ahead(fixed) | jnp.eye(fixed.shape[-1], dtype=bool)
  number = upto.sum(axis=-1)
  total = jnp.where(upto, fixed[..., None, :], 0.0).sum(axis=-1)
  used = jax.lax.stop_gradient(room) + number * fixed > total
  count = used.sum(axis=-1, keepdims=True)
  sum_used = jnp.where(used, logits, 0.0).sum(axis=-1, keepdims=True)
  threshold = (sum_used - room) / count
  return jnp.where(used, jax.nn.relu(logits - threshold), 0.0) / room
