# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoELoRA (Luo et al., arXiv 2402.12851): contrast between LoRA experts.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]

under a normalized top-2 gate, trained with a load balancing and a contrastive
loss: outputs of one expert attract, outputs of different experts repel. (Three
other methods have the same name.) From the paper: 8 experts, top-2, both
losses. Ours, since there is no public code: the equation and the temperature
(see `contrastive_loss`), rank, alpha, and that the loss looks at a
sample of `num_contrasted` tokens per layer.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


class MoELoRARouter(routing.Router):
  """Normalized top-2."""

  select: Any = selection.TopK(k=2, normalize=True)


class MoELoRA(molora.MoLoRA):
  """MoLoRA that sows a contrastive loss over the experts' outputs.

  Attributes:
    num_contrasted: Tokens per layer that the loss looks at, spread over the
      rows of the batch and over their length.
    temperature: Temperature of the contrastive loss.
  """

  num_experts: int = 8
  router_factory: Callable[..., routing.Router] = MoELoRARouter
  num_contrasted: int = 32
  temperature: float = 0.1

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    mixture, routing_ = self.mix(
        inputs.astype(dtype), tokens, lora_a.astype(dtype)
    )
    update = mixture.up((lora_b * self.scale).astype(dtype))
    if routing_ is not None and self.is_mutable_collection('intermediates'):
      loss = self._contrast(inputs, routing_.combine_weights, lora_a, lora_b)
      self.sow('intermediates', 'contrastive_loss', loss.reshape(1, 1, 1))
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def _contrast(self, inputs, combine_weights, lora_a, lora_b):
    """Returns the loss over the pairs (token, expert that it uses)."""
    inputs = inputs.reshape(-1, inputs.shape[-1])
    sample = spread(self.num_contrasted, len(inputs))
    used = combine_weights.reshape(-1, self.num_experts)[sample] > 0
    x = inputs[sample].astype(jnp.float32)
    features = jnp.einsum('ni,eir,ero->neo', x, lora_a, lora_b)
    experts = jnp.broadcast_to(jnp.arange(self.num_experts), used.shape)
    return contrastive_loss(
        features.reshape(-1, features.shape[-1]),
        experts.reshape(-1),
        jax.lax.stop_gradient(used).reshape(-1),
        self.temperature,
    )


def spread(number: int, size: int) -> np.ndarray:
  """Numbers below `size`, all different: `number` of them, or as many as fit.

  Their steps have no divisor in common with `size`. Even steps would meet all
  rows of a batch at the same place, that of their first tokens.
  """
  step = round(0.618 * size)  # The golden ratio leaves no wide gaps.
  while math.gcd(step, size) > 1:
    step += 1
  return np.arange(min(number, size)) * step % size


def contrastive_loss(
    features: jax.Array,
    experts: jax.Array,
    used: jax.Array,
    temperature: float,
) -> jax.Array:
  """Outputs of one expert attract, outputs of different experts repel.

  The purpose is the paper's; the equation is ours, since the paper's was not
  at hand: a supervised InfoNCE over pairs (token, expert),

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
