# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of routers, and how those of all sites are summed.

Every routed site sows scalars of shape [1, 1, 1] in 'intermediates'; `collect`
averages them over sites and layers, `total` weighs them. A loss of a router is
a part of it (`LoadBalance`, `RouterZ`); losses of a single method stand in the
method's file. Whatever is sown under a name that ends with `_loss` is found.
Sources: Switch (arXiv 2101.03961), ST-MoE (2202.08906), SiRA (2311.09179).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import capacity as capacity_lib

# What `collect` looks for besides the losses; the first three are T5X's.
METRICS = (
    'fraction_tokens_left_behind',
    'expert_usage',
    'router_confidence',
    'router_entropy',
    'effective_experts',
)


def collect(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Returns the mean over sites and layers of every sown name.

  Args:
    intermediates: The collection 'intermediates'; stacks of `nn.scan` may have
      their layer axis anywhere.
  """
  found: dict[str, list[jax.Array]] = {}
  for path, value in traverse_util.flatten_dict(dict(intermediates)).items():
    if path[-1] in METRICS or path[-1].endswith('_loss'):
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
          f'LOSS_FACTORS[{name!r}] = {factor}, but no layer has sown {name!r}.',
          where='LOSS_FACTORS',
          remedy='Set the factor to 0.0 if the method has no such loss. If it '
          'has, the model runs its layers in a scan that does not lift the '
          "collection 'intermediates': switch the scan off, or use "
          'moe_peft.models.t5.',
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


@dataclasses.dataclass(frozen=True)
class Routed:
  """What the losses of a router look at; l counts heads where they are routed.

  Attributes:
    probs: <float32>[batch, length, num_experts].
    logits: <float32>[batch, length, num_experts].
    load: <float32>[batch, length, num_experts], what each token gives to each
      expert before any drop: 1 where it is selected.
    valid: <bool>[batch, length].
    groups: The capacity groups; None: rows.
    active: <bool>[num_experts], False for experts that do not exist at this
      layer, which have neither probability nor load; None: all exist.
  """

  probs: jax.Array
  logits: jax.Array
  load: jax.Array
  valid: jax.Array
  groups: capacity_lib.Groups | None = None
  active: jax.Array | None = None

  @property
  def num_experts(self) -> int | jax.Array:
    """How many experts this layer has, a number or a traced <int32>[]."""
    return self.probs.shape[-1] if self.active is None else self.active.sum()


@dataclasses.dataclass(frozen=True)
class LoadBalance:
  """Load balancing loss, sown as `auxiliary_loss`.

  Attributes:
    form: 'switch', or 'sira' (arXiv 2311.09179), which is Switch's divided by
      `num_experts ** 2`: `factor_switch = factor_sira / num_experts ** 2`.
    per_group: Whether it is the mean of the losses of capacity groups, as in
      Flaxformer, and not that of the batch. A row with one kind of tokens then
      has to be balanced by itself.
  """

  form: str = 'switch'
  per_group: bool = False
  name = 'auxiliary_loss'

  def check(self) -> None:
    """Raises errors.UserError for an unknown form."""
    if self.form not in ('switch', 'sira'):
      raise errors.UserError(
          f"{self.form!r} is neither 'switch' nor 'sira'.",
          where='losses.LoadBalance.form',
      )

  def __call__(self, routed: Routed) -> jax.Array:
    arrays = routed.probs, routed.load, routed.valid
    if not self.per_group:
      loss = load_balancing_loss(*arrays)
    else:
      rows, length = routed.valid.shape
      groups = routed.groups or capacity_lib.Groups(rows, length, length)
      shape = (groups.num_groups, 1, groups.group_size)
      arrays = [x.reshape(*shape, *x.shape[2:]) for x in arrays]
      has_tokens = arrays[-1].any(axis=(1, 2))
      losses = jnp.where(has_tokens, jax.vmap(load_balancing_loss)(*arrays), 0)
      loss = losses.sum() / jnp.maximum(has_tokens.sum(), 1)
    loss *= routed.num_experts / routed.probs.shape[-1]
    return loss / (routed.num_experts**2 if self.form == 'sira' else 1)


@dataclasses.dataclass(frozen=True)
class RouterZ:
  """Router z-loss, sown as `router_z_loss`."""

  name = 'router_z_loss'

  def check(self) -> None:
    """Has no options."""

  def __call__(self, routed: Routed) -> jax.Array:
    return router_z_loss(routed.logits, routed.valid)


def load_balancing_loss(
    router_probs: jax.Array, load: jax.Array, valid: jax.Array
) -> jax.Array:
  """Load balancing loss of Switch, arXiv 2101.03961 equation 4.

  `num_experts * sum_e load_e * prob_e`; k for a perfectly balanced selection
  of k experts.

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


def shares(probs: jax.Array) -> jax.Array:
  """Probabilities divided by their sum (those of sigmoids need not have 1)."""
  return probs / (probs.sum(axis=-1, keepdims=True) + 1e-9)


def entropy(probs: jax.Array) -> jax.Array:
  """Entropy over the last axis in nats, <float32>[...]."""
  return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)
