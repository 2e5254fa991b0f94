# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoELoRA (Luo et al., arXiv 2402.12851): contrast between LoRA experts.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]

under a renormalised top-2 gate, trained with a load balancing and a contrastive
loss: outputs of one expert attract, outputs of different experts repel. (Three
other methods have the same name.) From the paper: 8 experts, top-2, both
losses. Ours, since there is no public code: the equation and the temperature
(see `losses.contrastive_loss`), rank, alpha, and that the loss looks at a
sample of `num_contrasted` tokens per layer.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.methods import molora


class MoELoRARouter(routing.Router):
  """Renormalised top-2."""

  selection: str = 'top_k'
  num_selected_experts: int | None = 2
  renormalise: bool = True


class MoELoRA(molora.MoLoRA):
  """MoLoRA that sows a contrastive loss over the experts' outputs.

  Attributes:
    num_contrasted: Tokens per layer that the loss looks at, evenly spread over
      the batch.
    temperature: Of the contrastive loss.
  """

  num_experts: int = 8
  router_factory: Callable[..., Any] = MoELoRARouter
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
    update = mixture.up((lora_b * (self.alpha / self.rank)).astype(dtype))
    if routing_ is not None and self.is_mutable_collection('intermediates'):
      loss = self._contrast(inputs, routing_.combine_weights, lora_a, lora_b)
      self.sow('intermediates', 'contrastive_loss', loss.reshape(1, 1, 1))
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def _contrast(self, inputs, combine_weights, lora_a, lora_b):
    """Returns the loss over the pairs (token, expert that it uses)."""
    inputs = inputs.reshape(-1, inputs.shape[-1])
    number = min(self.num_contrasted, len(inputs))
    sample = jnp.arange(number) * len(inputs) // number
    used = combine_weights.reshape(-1, self.num_experts)[sample] > 0
    x = inputs[sample].astype(jnp.float32)
    features = jnp.einsum('ni,eir,ero->neo', x, lora_a, lora_b)
    experts = jnp.broadcast_to(jnp.arange(self.num_experts), used.shape)
    return losses.contrastive_loss(
        features.reshape(-1, features.shape[-1]),
        experts.reshape(-1),
        jax.lax.stop_gradient(used).reshape(-1),
        self.temperature,
    )
