# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""More losses of routers, for every router: parts beside `LoadBalance`.

A router sows those that its `losses` name, and LOSS_FACTORS weighs them by the
names here. All look at probabilities that are divided by their sum, in float32,
and leave padding out. Published weights of sums over sites have to be
multiplied by the number of sites: ours are means.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import losses


@dataclasses.dataclass(frozen=True)
class Variance:
  """Minus the variance of probabilities over tokens, `variance_loss`.

  Tokens should differ in whom they use (arXiv 2505.22323, equation 7, of which
  two readings exist; over the experts of one token it would only sharpen).
  """

  name = 'variance_loss'

  def check(self) -> None:
    """Has no options."""

  def __call__(self, routed: losses.Routed) -> jax.Array:
    probs = losses.shares(routed.probs)
    mean = losses.mean_over(probs, routed.valid)
    variance = losses.mean_over((probs - mean) ** 2, routed.valid)
    return -variance.mean(where=routed.active)


@dataclasses.dataclass(frozen=True)
class JensenShannon:
  """Generalized Jensen-Shannon divergence, `jensen_shannon_loss`.

  HMoRA (openreview lTkHiXeuDl), with H = log(num_experts), m the mean of p:

    relu((balance - certainty) H
         - (min(H(m), balance H) - mean max(H(p), certainty H))) / H

  Zero, without a gradient, once the load is balanced and tokens are certain
  enough. From the released code: 0.98 and 0.5, a weight of 0.005 summed over
  routers.

  Attributes:
    balance: Share of the largest entropy that the mean load should reach.
    certainty: Share of it below which a token need not fall.
  """

  balance: float = 0.98
  certainty: float = 0.5
  name = 'jensen_shannon_loss'

  def check(self) -> None:
    """Raises errors.UserError for shares that are out of order."""
    if not 0.0 <= self.certainty <= self.balance <= 1.0:
      raise errors.UserError(
          f'0 <= certainty = {self.certainty} <= balance = {self.balance} <= 1 '
          'does not hold.', where='router_losses.JensenShannon.balance',
      )

  def __call__(self, routed: losses.Routed) -> jax.Array:
    probs = losses.shares(routed.probs)
    largest = jnp.log(jnp.maximum(routed.num_experts, 2.0))
    mean = losses.mean_over(probs, routed.valid)
    balanced = jnp.minimum(_entropy(mean), self.balance * largest)
    certain = losses.mean_over(
        jnp.maximum(_entropy(probs), self.certainty * largest), routed.valid
    )
    wanted = (self.balance - self.certainty) * largest
    return jax.nn.relu(wanted - (balanced - certain)) / largest


@dataclasses.dataclass(frozen=True)
class Tsallis:
  """Mean Tsallis entropy of tokens, `tsallis_loss` (DynMoLE, 2504.00661).

    (1 - sum_e p_e^q) / (q - 1)

  Attributes:
    q: Its order; 2 is Gini's, near 1 Shannon's. The paper's is 1.1, with a
      weight of 0.01.
  """

  q: float = 1.1
  name = 'tsallis_loss'

  def check(self) -> None:
    """Raises errors.UserError for an order without this formula."""
    if not self.q > 0 or self.q == 1:
      raise errors.UserError(
          f'q = {self.q} must be above 0, and not 1.',
          where='router_losses.Tsallis.q',
          remedy='For the entropy of Shannon take 1.001.',
      )

  def __call__(self, routed: losses.Routed) -> jax.Array:
    entropy = tsallis_entropy(losses.shares(routed.probs), self.q)
    return losses.mean_over(entropy, routed.valid)


def tsallis_entropy(probs: jax.Array, q: float) -> jax.Array:
  """Tsallis entropy of order q over the last axis, <float32>[...]."""
  # Gradients of powers are infinite at 0 for orders below 1.
  return (1.0 - jnp.sum(jnp.maximum(probs, 1e-20) ** q, axis=-1)) / (q - 1.0)


def _entropy(probs: jax.Array) -> jax.Array:
  """`losses.entropy` whose gradient is finite at probabilities of 0."""
  return losses.entropy(jnp.maximum(probs, 1e-20))
