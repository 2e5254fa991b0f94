# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of routers and experts, and how they are summed over sites.

Every routed site sows scalars of shape [1, 1, 1] in 'intermediates'; `collect`
averages them over sites and layers, `total` weighs them. Sources: Switch
(arXiv 2101.03961), ST-MoE (2202.08906), SiRA (2311.09179), MoELoRA
(2402.12851), AdaMix (2205.12410).
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from moe_peft import errors

# What `collect` looks for. The first five are T5X's.
NAMES = (
    'auxiliary_loss',
    'router_z_loss',
    'fraction_tokens_left_behind',
    'expert_usage',
    'router_confidence',
    'router_entropy',
    'contrastive_loss',
    'consistency_loss',
)


def collect(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Returns the mean over sites and layers of every sown name.

  Args:
    intermediates: The collection 'intermediates'; stacks of `nn.scan` may have
      their layer axis anywhere.
  """
  found: dict[str, list[jax.Array]] = {}
  for path, value in traverse_util.flatten_dict(dict(intermediates)).items():
    if path[-1] in NAMES:
      # Ravelled, so that each layer of a scanned stack counts as one site.
      found.setdefault(path[-1], []).extend(
          jnp.ravel(x) for x in jax.tree.leaves(value)
      )
  return {name: jnp.mean(jnp.concatenate(x)) for name, x in found.items()}


def total(
    metrics: Mapping[str, jax.Array], factors: Mapping[str, float]
) -> jax.Array:
  """Returns the sum of `factors[name] * metrics[name]`.

  Args:
    metrics: Result of `collect`.
    factors: Weight of each loss; names with weight 0 need not be there.

  Raises:
    errors.UserError: If a loss with a nonzero factor was not sown. It would
      otherwise be a silent zero.
  """
  result = jnp.zeros((), jnp.float32)
  for name, factor in factors.items():
    if not factor:
      continue
    if name not in metrics:
      raise errors.UserError(
          f'LOSS_FACTORS[{name!r}] = {factor}, but no layer has sown '
          f'{name!r}. Either the method has no such loss (then set the factor '
          'to 0.0), or the model runs its layers in a scan that does not lift '
          "the collection 'intermediates' (then switch the scan off, or use "
          'moe_peft.models.t5).'
      )
    result += factor * metrics[name]
  return result


def mean_over(values: jax.Array, valid: jax.Array) -> jax.Array:
  """Mean over the real tokens.

  Args:
    values: <float32>[batch, length, ...].
    valid: <bool>[batch, length].

  Returns:
    <float32>[...]; zero if there is no real token.
  """
  valid = valid.reshape(valid.shape + (1,) * (values.ndim - 2))
  count = jnp.maximum(valid.sum(), 1)
  return jnp.where(valid, values, 0).sum(axis=(0, 1)) / count


def load_balancing_loss(
    router_probs: jax.Array, load: jax.Array, valid: jax.Array
) -> jax.Array:
  """Load balancing loss of Switch, arXiv 2101.03961 equation 4.

  `num_experts * sum_e load_e * prob_e`; k for a perfectly balanced selection
  of k experts. SiRA's form (2311.09179) is this one divided by
  `num_experts ** 2`, so `factor_switch = factor_sira / num_experts ** 2`.

  Args:
    router_probs: <float32>[batch, length, num_experts].
    load: <float32>[batch, length, num_experts], what each token gives to each
      expert: 1 where it is selected. No gradient flows through it.
    valid: <bool>[batch, length].
  """
  num_experts = router_probs.shape[-1]
  mean_load = mean_over(jax.lax.stop_gradient(load), valid)
  return num_experts * jnp.sum(mean_load * mean_over(router_probs, valid))


def router_z_loss(router_logits: jax.Array, valid: jax.Array) -> jax.Array:
  """Router z-loss of ST-MoE, arXiv 2202.08906 equation 5.

  Args:
    router_logits: <float32>[batch, length, num_experts].
    valid: <bool>[batch, length].
  """
  z = jax.nn.logsumexp(router_logits, axis=-1)
  return mean_over(z**2, valid)


def entropy(probs: jax.Array) -> jax.Array:
  """Entropy over the last axis in nats, <float32>[...]."""
  return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)


def contrastive_loss(
    features: jax.Array,
    experts: jax.Array,
    used: jax.Array,
    temperature: float,
) -> jax.Array:
  """Outputs of one expert attract, outputs of different experts repel.

  The purpose is MoELoRA's (arXiv 2402.12851); the equation is ours, since the
  paper's was not at hand: a supervised InfoNCE over pairs (token, expert),

    mean_i -1/|P(i)| sum_{p in P(i)} log(s_ip / sum_a s_ia),
    s_ij = exp(z_i z_j / t)

  with `z` the normalized features, `P(i)` the other pairs of the same expert
  and `a` over all other pairs. While all features are zero (lora_b at its
  initial value) the loss is a constant and its gradient finite.

  Args:
    features: <float>[pairs, features], outputs of the experts.
    experts: <int32>[pairs], which expert made them.
    used: <bool>[pairs]; False for pairs that do not count.
    temperature: `t`.
  """
  features = features.astype(jnp.float32)
  # Inside the square root, so that the gradient at zero is not NaN.
  norm = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-12)
  z = features / norm
  others = used[:, None] & used[None, :] & ~jnp.eye(len(used), dtype=bool)
  positive = others & (experts[:, None] == experts[None, :])
  logits = jnp.where(others, z @ z.T / temperature, -1e9)
  log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  num_positive = positive.sum(axis=-1)
  per_pair = -jnp.where(positive, log_probs, 0).sum(axis=-1)
  per_pair /= jnp.maximum(num_positive, 1)
  return per_pair.sum() / jnp.maximum((num_positive > 0).sum(), 1)


def consistency_loss(
    logits: jax.Array, other_logits: jax.Array, valid: jax.Array | None
) -> jax.Array:
  """Symmetric divergence of two stochastic passes, AdaMix (2205.12410).

  `0.5 * (KL(p || sg(q)) + KL(q || sg(p)))`, sg stops the gradient.

  Args:
    logits: <float>[batch, length, vocab].
    other_logits: The same, from the other pass.
    valid: <bool>[batch, length], or None if all tokens count.
  """
  if valid is None:
    valid = jnp.ones(logits.shape[:2], bool)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_q = jax.nn.log_softmax(other_logits.astype(jnp.float32))
  stop = jax.lax.stop_gradient
  forward = jnp.sum(jnp.exp(log_p) * (log_p - stop(log_q)), axis=-1)
  backward = jnp.sum(jnp.exp(log_q) * (log_q - stop(log_p)), axis=-1)
  return 0.5 * mean_over(forward + backward, valid)
