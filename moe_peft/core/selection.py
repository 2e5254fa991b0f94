# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Selection, loss-free balancing and statistics of routers."""

from typing import Any

import jax
import jax.numpy as jnp

from moe_peft.core import losses


def select_top_k(scores: jax.Array, k: Any) -> jax.Array:
  """Returns the <bool>[..., num_experts] mask of the k best experts.

  Args:
    scores: <float>[..., num_experts]; of equal scores the first wins.
    k: A number, or a traced <int32>[].
  """
  scores = jax.lax.stop_gradient(scores)
  # Counted and not sorted: a sort would gather a batch that is sharded, and
  # num_experts ** 2 comparisons cost little.
  mine, other = scores[..., :, None], scores[..., None, :]
  expert = jnp.arange(scores.shape[-1])
  before = (other > mine) | ((other == mine) & (expert < expert[:, None]))
  return before.sum(axis=-1) < k


@jax.custom_vjp
def balance_by_gradient(
    gates: jax.Array, bias: jax.Array, mean_load: jax.Array
) -> jax.Array:
  """Returns `gates`; going back, the bias gets `sign(load - mean(load))`.

  Loss-free balancing (arXiv 2408.15664) moves the bias of overloaded experts
  down and of idle ones up, `bias += u * sign(mean_count - count)`. Written as a
  gradient (ours) it needs no mutable state and runs under every trainer: with
  plain SGD of rate u it is that rule, with Adam nearly so. The gradient does
  not depend on the scale of the loss.

  Args:
    gates: <float32>[batch, length, num_experts].
    bias: <float32>[num_experts].
    mean_load: <float32>[num_experts], mean selections per token.
  """
  del bias, mean_load
  return gates


def _balance_forward(gates, bias, mean_load):
  del bias
  return gates, jnp.sign(mean_load - mean_load.mean())


def _balance_backward(sign, cotangent):
  return cotangent, sign, jnp.zeros_like(sign)


balance_by_gradient.defvjp(_balance_forward, _balance_backward)


def metrics(
    router: Any,
    probs: jax.Array,
    logits: jax.Array,
    gates: jax.Array,
    load: jax.Array,
    valid: jax.Array,
    group: tuple[int, int, int | None, int],
) -> dict[str, jax.Array]:
  """Returns the scalars that T5X's MoE models know, and the entropy.

  Padding counts in none of them.

  Args:
    router: The routing.Router.
    probs: <float32>[batch, length, num_experts].
    logits: <float32>[batch, length, num_experts].
    gates: <float32>[batch, length, num_experts], final weights.
    load: <float32>[batch, length, num_experts], selections before any drop.
    valid: <bool>[batch, length].
    group: (num_groups, group_size, expert_capacity or None, row length).
  """
  groups, size, limit, _ = group
  loss = losses.load_balancing_loss(probs, load, valid)
  if router.load_balance == 'sira':
    loss /= router.num_experts**2
  used = valid[..., None] & (gates > 0)
  num_used = jnp.maximum(used.sum(), 1)
  if limit is None:
    usage = losses.mean_over(used.astype(jnp.float32), valid).mean()
  else:
    usage = used.sum() / (groups * limit * router.num_experts)
  left = 1.0 - losses.mean_over(used.any(axis=-1).astype(jnp.float32), valid)
  normalized = probs / (probs.sum(axis=-1, keepdims=True) + 1e-9)
  uniform = jnp.log(float(max(router.num_experts, 2)))
  return {
      'auxiliary_loss': loss,
      'router_z_loss': losses.router_z_loss(logits, valid),
      'fraction_tokens_left_behind': left,
      'expert_usage': usage,
      'router_confidence': jnp.where(used, gates, 0.0).sum() / num_used,
      'router_entropy': (
          losses.mean_over(losses.entropy(normalized), valid) / uniform
      ),
  }
