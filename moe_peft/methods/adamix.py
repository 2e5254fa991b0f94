# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMix (arXiv 2205.12410): one random expert per site and batch.

  outputs + alpha / rank * (inputs @ lora_a[i]) @ lora_b

While training, i is drawn for the whole batch. At evaluation the weights are
averaged: lora_a becomes the mean over experts, which makes a plain LoRA. The
loss has a second term, the divergence of two passes (`ConsistencyRule`). From
the paper's code: 4 experts, the shared up-projection, the symmetric divergence.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True)
class NoScores(scores.TokenScores):
  """Equal logits for all: there is nothing to look at, and no parameter."""

  learned = False

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    return jnp.zeros((1, 1, router.num_experts), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomChoice(selection.TopK):
  """Draws k experts for the whole batch while training, all equally after."""

  k: int | None = 1

  def __call__(self, router, logits, context):
    probs = self.probs(router, logits, context)
    if not context.training:
      there = probs > 0
      gates = there / there.sum(axis=-1, keepdims=True)
      return self.decide(probs, gates, None)
    noise = jax.random.uniform(
        router.make_rng('dropout'), (1, 1, probs.shape[-1])
    )
    noise = selection.mask(noise, context.active)
    selected = jnp.broadcast_to(
        selection.select_top_k(noise, self.k), probs.shape
    )
    selected &= probs > 0  # Not at this layer.
    gates = selected / selected.sum(axis=-1, keepdims=True)
    return self.decide(probs, gates, selected)


class AdaMixRouter(routing.Router):
  """One expert for the whole batch while training, all equally after."""

  scores: Any = NoScores()
  select: Any = RandomChoice()


class AdaMix(molora.MoLoRA):
  """LoRA whose down-projection is drawn anew for each batch."""

  num_experts: int = 4
  router_factory: Callable[..., routing.Router] = AdaMixRouter

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('weights are merged, no token travels.')
    lora_a, lora_b = low_rank.lora_kernels(
        self, inputs.shape[-1], outputs.shape[-1], self.site.kernel_axis_names,
        num_b=1,
    )
    dtype = self.dtype or outputs.dtype
    decision = self.route(inputs, tokens)
    if decision is not None:
      # Drawn for the whole batch; only padding has no weights.
      weights = decision.combine_weights.max(axis=(0, 1))
      lora_a = jnp.einsum('e,eio->io', weights, lora_a)[None]
    drawn = dispatch.down(
        'all_experts', inputs.astype(dtype), lora_a.astype(dtype), None
    )
    update = drawn.up((lora_b * self.scale).astype(dtype))
    return outputs + update.astype(outputs.dtype)


@dataclasses.dataclass(frozen=True)
class ConsistencyRule(inject.OutputRule):
  """Runs the model twice while training and sows `consistency_loss`.

  The result of the model is that of the first pass.
  """

  def after_call(self, model, arguments, result, again):
    if not model.has_rng('dropout'):  # Two passes that are the same.
      model.sow('intermediates', 'consistency_loss', jnp.zeros((1, 1, 1)))
      return
    call = tokens_lib.Call(arguments, reads_encoder=False)
    tokens = model.describe_tokens(call)
    tokens.require_known('The consistency loss')
    loss = consistency_loss(result, again(), tokens.valid)
    model.sow('intermediates', 'consistency_loss', loss.reshape(1, 1, 1))


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
  return 0.5 * losses.mean_over(forward + backward, valid)
