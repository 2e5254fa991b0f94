# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routers turn tokens into weights over experts.

A router is a composition: scores make logits of what it looks at (scores.py),
a selection turns them into gates (selection.py), a capacity limits how many
tokens an expert takes (capacity.py), losses and metrics are sown (losses.py).
Arithmetic is float32 throughout ("selective precision", Switch, arXiv
2101.03961). The router of a published method stands in the method's file.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft.core import capacity as capacity_lib
from moe_peft.core import losses as losses_lib
from moe_peft.core import scores as scores_lib
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib


@dataclasses.dataclass(frozen=True)
class Features:
  """What a router reads.

  Attributes:
    axis: Logical name of the features.
    num_heads: Heads in the features (1 if the layer has none); None if they
      are not the outputs of a layer, and cannot be routed by head.
    causal: Whether later tokens must not matter.
  """

  axis: str = 'embed'
  num_heads: int | None = None
  causal: bool = True


@struct.dataclass
class Routing:
  """What a router decides. Where heads are routed, length is length * heads.

  Attributes:
    combine_weights: <float32>[batch, length, num_experts], the weight of each
      expert in each token's output; 0 where the expert is not used.
    router_probs: <float32>[batch, length, num_experts].
    router_logits: <float32>[batch, length, num_experts].
    metrics: Scalars to be sown in `intermediates`; none where it is immutable.
    num_selected: Most experts that a token uses.
    group_size: Tokens of a capacity group.
    expert_capacity: Most tokens of a group that an expert takes.
  """

  combine_weights: jax.Array
  router_probs: jax.Array
  router_logits: jax.Array
  metrics: Mapping[str, jax.Array]
  num_selected: int = struct.field(pytree_node=False, default=1)
  group_size: int = struct.field(pytree_node=False, default=1)
  expert_capacity: int = struct.field(pytree_node=False, default=1)


class Router(nn.Module):
  """Decides which experts a token uses, and with which weights.

  Attributes:
    num_experts: Number of experts.
    reads: What it reads.
    scores: Makes logits, a part of scores.py or of a method.
    select: Turns logits into gates, a part of selection.py or of a method.
    capacity: Limit of tokens per expert, or None.
    losses: Scalars that are sown, parts of losses.py or of a method.
  """

  num_experts: int
  reads: Features = Features()
  scores: Any = scores_lib.TokenScores()
  select: Any = selection.Soft()
  capacity: capacity_lib.Capacity | None = None
  losses: Sequence[Any] = (losses_lib.LoadBalance(), losses_lib.RouterZ())

  @nn.compact
  def rows(self, features: int) -> jax.Array | None:
    """Returns the rows that its inputs are to be multiplied with, or None.

    Args:
      features: Number of features of the inputs.

    Returns:
      <float32>[n, features], rows that can share a matmul with others; None if
      the logits are no products with the inputs.
    """
    return self.scores.rows(self, features)

  @nn.compact
  def __call__(
      self,
      inputs: jax.Array,
      tokens: tokens_lib.Tokens | None = None,
      product: jax.Array | None = None,
      active: jax.Array | None = None,
  ) -> Routing:
    """Routes.

    Args:
      inputs: <float>[batch, length, features].
      tokens: Padding, packing and prompt; None: only real tokens.
      product: <float32>[batch, length, n], the inputs' products with `rows`,
        or None if they are still to be made.
      active: <bool>[num_experts], False for experts that do not exist at this
        layer, or None.

    Raises:
      errors.UserError: For parts that do not go together, and where padding
        matters and nothing says which tokens are padding.
    """
    self._check()
    tokens = tokens_lib.Tokens() if tokens is None else tokens
    units = self.scores.units(self)
    batch, length = inputs.shape[0], inputs.shape[1] * units
    logits = self.scores.logits(self, inputs, tokens, product)
    logits = jnp.broadcast_to(logits, (batch, length, logits.shape[-1]))
    context = selection.Context(
        tokens=tokens,
        valid=lambda: _valid(tokens, batch, length, units),
        active=active,
        training=self.has_rng('dropout'),
        per_row=self.scores.per_row,
    )
    decision = self.select(self, logits, context)
    gates, selected = decision.gates, decision.selected
    load = gates if selected is None else selected.astype(jnp.float32)
    groups = _groups(self, batch, length, units, context.training)
    if selected is not None and tokens.known:
      selected &= context.valid()[..., None]
    if groups.expert_capacity is not None:
      selected = _within_capacity(
          self, decision, selected, tokens, groups, units
      )
    if selected is not None:
      gates = jnp.where(selected, gates, 0.0)
    logits = selection.mask(logits[..., : self.num_experts], active)
    metrics = {}
    if self.is_mutable_collection('intermediates'):  # Not in evaluation.
      routed = losses_lib.Routed(
          decision.probs, logits, load, context.valid(), groups, active
      )
      metrics = {loss.name: loss(routed) for loss in self.losses}
      metrics |= _metrics(routed, gates, groups)
    return Routing(
        combine_weights=gates,
        router_probs=decision.probs,
        router_logits=logits,
        metrics=metrics,
        num_selected=self.select.most_selected(self.num_experts),
        group_size=groups.group_size,
        expert_capacity=groups.expert_capacity or groups.group_size,
    )

  @nn.nowrap
  def param_with_axes(
      self,
      name: str,
      init: Callable[..., jax.Array],
      shape: Sequence[int],
      axes: Sequence[str],
  ) -> jax.Array:
    """Returns a float32 parameter of this router with logical axes."""
    return partitioning.param_with_axes(
        name, init, tuple(shape), jnp.float32, axes=tuple(axes), module=self
    )

  @nn.nowrap
  def _check(self) -> None:
    self.scores.check(self)
    self.select.check(self)
    if self.capacity is not None:
      chosen = self.select.priority  # It overrides that of the capacity.
      self.capacity.check(self.reads.causal and chosen is None)
    for loss in self.losses:
      loss.check()


def _valid(
    tokens: tokens_lib.Tokens, batch: int, length: int, units: int
) -> jax.Array:
  """Returns which routed units are real, <bool>[batch, length]."""
  tokens.require_known('A router')
  if tokens.valid is None:
    return jnp.ones((batch, length), bool)
  return jnp.repeat(tokens.valid, units, axis=1)


def _groups(
    router: Router, batch: int, length: int, units: int, training: bool
) -> capacity_lib.Groups:
  """Returns the capacity groups, without a limit where there is none."""
  capacity = router.capacity
  # One step of decoding has one token a row: a limit would mean nothing.
  limited = capacity is not None and length > units and (
      training or capacity.at_evaluation or router.select.limits_evaluation
  )
  if not limited:
    return capacity_lib.Groups(batch, length, length)
  return capacity.groups(batch, length, router.num_experts, units)


def _within_capacity(
    router: Router,
    decision: selection.Decision,
    selected: jax.Array,
    tokens: tokens_lib.Tokens,
    groups: capacity_lib.Groups,
    units: int,
) -> jax.Array:
  """Returns which selections find a slot, <bool>[batch, length, experts]."""
  tokens.require_known('A capacity')
  ids = tokens.segment_ids
  return capacity_lib.within_capacity(
      selected,
      decision.scores,
      None if ids is None else jnp.repeat(ids, units, axis=1),
      groups,
      router.select.priority or router.capacity.priority,
  )


def _metrics(
    routed: losses_lib.Routed, gates: jax.Array, groups: capacity_lib.Groups
) -> dict[str, jax.Array]:
  """Returns the scalars that T5X's MoE models know, and the entropy.

  Padding counts in none of them.

  Args:
    routed: What the router decided.
    gates: <float32>[batch, length, num_experts], final weights.
    groups: The capacity groups.
  """
  valid, num_experts = routed.valid, routed.num_experts
  mean = lambda x: losses_lib.mean_over(x.astype(jnp.float32), valid)
  used = valid[..., None] & (gates > 0)
  if groups.expert_capacity is None:
    usage = mean(used).mean(where=routed.active)
  else:
    slots = groups.num_groups * groups.expert_capacity * num_experts
    usage = used.sum() / slots
  shares = losses_lib.shares(routed.probs)
  uniform = jnp.log(jnp.maximum(num_experts, 2.0))
  weights = jnp.where(used, gates, 0.0)
  # The number of equal weights that would be as spread out: of k selected
  # experts one may still have nearly all of the weight (arXiv 2603.10160).
  effective = jnp.square(weights.sum(axis=-1)) / jnp.maximum(
      jnp.square(weights).sum(axis=-1), 1e-9
  )
  return {
      'fraction_tokens_left_behind': 1.0 - mean(used.any(axis=-1)),
      'expert_usage': usage,
      'router_confidence': weights.sum() / jnp.maximum(used.sum(), 1),
      'router_entropy': mean(losses_lib.entropy(shares)) / uniform,
      'effective_experts': mean(effective),
  }
