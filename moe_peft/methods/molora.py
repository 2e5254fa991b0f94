# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixture of LoRA, MoLoRA (arXiv 2309.05444): experts are low-rank updates.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import adapter
from moe_peft.core import dispatch
from moe_peft.core import expert_losses
from moe_peft.core import low_rank


class MoLoRA(adapter.MoeAdapter):
  """Adds a mixture of low-rank updates to the outputs.

  From the paper's code: initial values, alpha 16, the sites of the gin file.
  There alpha is not a field; here it is.

  Attributes:
    rank: Rank of each expert.
    alpha: The update is scaled by `alpha / rank`.
    rank_stabilized: It is scaled by `alpha / sqrt(rank)` (rsLoRA, 2312.03732).
    losses: Losses of what the experts compute, parts of expert_losses.py.
  """

  rank: int = 4
  alpha: float = 16.0
  rank_stabilized: bool = False
  losses: Sequence[Any] = ()

  @property
  def scale(self) -> float:
    """Factor of the update."""
    rank = math.sqrt(self.rank) if self.rank_stabilized else self.rank
    return self.alpha / rank

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    mixture, routing = self.mix(
        inputs.astype(dtype), tokens, lora_a.astype(dtype)
    )
    # Scaling lora_b and not the update saves a pass over the outputs.
    update = mixture.up((lora_b * self.scale).astype(dtype))
    self.sow_losses(inputs, tokens, routing, lora_a, lora_b)
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def sow_losses(self, inputs, tokens, routing, lora_a, lora_b):
    """Sows the losses of what the experts compute."""
    watched = self.is_mutable_collection('intermediates')
    if not self.losses or routing is None or not watched:
      return
    inputs = inputs.astype(jnp.float32)
    hidden = low_rank.project(inputs, dispatch.down_rows(lora_a))
    hidden = hidden.reshape(*inputs.shape[:2], self.rank, len(lora_a))
    valid = jnp.ones(inputs.shape[:2], bool)
    if tokens is not None:
      tokens.require_known('A loss of experts')
      valid = valid if tokens.valid is None else tokens.valid
    shape = (*inputs.shape[:2], self.num_experts, self.rank)
    computed = expert_losses.Computed(
        jnp.broadcast_to(hidden.swapaxes(-1, -2), shape),
        jnp.broadcast_to(lora_b, (self.num_experts, *lora_b.shape[1:])),
        routing.combine_weights, valid,
    )
    for loss in self.losses:
      self.sow('intermediates', loss.name, loss(computed).reshape(1, 1, 1))

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [num_experts, in, rank] and `lora_b`."""
    return low_rank.lora_kernels(
        self, in_features, out_features, self.site.kernel_axis_names
    )
