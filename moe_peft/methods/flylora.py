# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""FlyLoRA (arXiv 2510.08396): ranks are experts that choose themselves.

  hidden = inputs @ sparse_a                             [num_experts], frozen
  outputs + alpha / num_experts * (mask * hidden) @ lora_b

The mask keeps the k ranks with the largest |hidden + bias|; a bias moves
against the load (`smora.balance_by_gradient`). `sparse_a` is drawn once: in
each column in_features * k / num_experts numbers are normal with a deviation of
1 / num_experts, all others 0; the run's seed gives it again. From the released
code: 32 ranks of which 8 are used, alpha 64, all projections; the magnitude is
that of its single file, while its PEFT layer takes `hidden` with its sign
(MAGNITUDE = False). Left out, as faults: no gradient through `hidden` to lower
layers, and a bias that moves in evaluation.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import molora
from moe_peft.methods import smora


@dataclasses.dataclass(frozen=True)
class GivenLogits(scores.TokenScores):
  """The logits are what the router reads; there is no parameter."""

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    return inputs.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Largest(smora.BiasedTopK):
  """The k largest logits, with weight 1 and a balancing bias.

  Attributes:
    magnitude: Whether negative ones count by their size.
  """

  magnitude: bool = True
  normalize: bool = False

  def __call__(self, router, logits, context):
    bias = router.param_with_axes(
        'bias', nn.initializers.zeros, (router.num_experts,), ('unmodeled',)
    )
    who = jax.lax.stop_gradient(logits + bias)
    who = selection.mask(jnp.abs(who) if self.magnitude else who,
                         context.active)
    selected = selection.select_top_k(who, self.num_selected(context))
    probs = jax.nn.softmax(who)
    # Ranks that this layer does not have, where it has fewer than k.
    gates = selection.mask(jnp.ones_like(who), context.active)
    decision = self.decide(probs, gates, selected, who)
    return self.balanced(decision, bias, context)


class FlyLoRARouter(routing.Router):
  """The largest ranks, with weight 1."""

  scores: Any = GivenLogits()
  select: Any = Largest()


class FlyLoRA(molora.MoLoRA):
  """A frozen sparse projection, and a trained row of `lora_b` for each rank."""

  counts_experts = True  # See mola.by_depth.
  num_experts: int = 32
  rank: int = 1
  alpha: float = 64.0
  router_factory: Callable[..., routing.Router] = FlyLoRARouter

  @property
  def scale(self) -> float:
    return self.alpha / self.num_experts

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('the products that choose are the experts.')
    in_axis, out_axis = self.site.kernel_axis_names
    sparse_a = jax.lax.stop_gradient(self.param_with_axes(
        'sparse_a', self._sparse, (self.num_experts, inputs.shape[-1], 1),
        ('expert', in_axis, 'rank'),
    ))
    lora_b = self.param_with_axes(
        'lora_b', nn.initializers.zeros,
        (self.num_experts, 1, outputs.shape[-1]), ('expert', 'rank', out_axis),
    )
    dtype = self.dtype or outputs.dtype
    hidden = low_rank.project(inputs.astype(jnp.float32),
                              dispatch.down_rows(sparse_a))
    decision = self.route(hidden, tokens, in_axis='unmodeled')
    weights = None if decision is None else decision.combine_weights
    mixture = dispatch.AllExperts(hidden.astype(dtype), weights)
    update = mixture.up((lora_b * self.scale).astype(dtype))
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def _sparse(self, key, shape, dtype):
    """Columns with in_features * k / num_experts numbers that are not 0."""
    num_experts, features, _ = shape
    router = self.router_factory(num_experts=num_experts, parent=None)
    k = min(router.select.k, num_experts)
    kept = max(1, round(features * k / num_experts))
    of_values, of_places = jax.random.split(key)
    values = jax.random.normal(of_values, shape, dtype) / num_experts
    places = jax.random.uniform(of_places, shape)
    # Each column alone: those of the smallest of as many random numbers.
    rank = jnp.argsort(jnp.argsort(places, axis=1), axis=1)
    return jnp.where(rank < kept, values, 0.0)
