# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMix (arXiv 2205.12410): one random expert per site and batch.

  outputs + alpha / rank * (inputs @ lora_a[i]) @ lora_b[j]

While training, i and j are drawn independently for the whole batch. At
evaluation the weights are averaged: lora_a and lora_b each become the mean
over experts, which makes a plain LoRA. The loss has a second term, the
divergence of two passes (`inject.AdaptedModule.consistency = True`). From the
paper's code: 4 experts, the shared up-projection, the symmetric divergence.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import routing
from moe_peft.methods import molora


class AdaMixRouter(routing.Router):
  """One expert for the whole batch while training, all equally after."""

  selection: str = 'random'
  num_selected_experts: int | None = 1
  unit: str = 'batch'


class AdaMix(molora.MoLoRA):
  """LoRA with randomly drawn halves.

  Attributes:
    share_a: One `lora_a` for all experts.
    share_b: One `lora_b` for all experts.
  """

  num_experts: int = 4
  router_factory: Callable[..., Any] = AdaMixRouter
  share_a: bool = False
  share_b: bool = True

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('weights are merged, no token travels.')
    in_axis, out_axis = self.site.kernel_axis_names
    in_features, out_features = inputs.shape[-1], outputs.shape[-1]
    lora_a = self.param_with_axes(
        'lora_a',
        nn.initializers.normal(stddev=2e-2),
        (1 if self.share_a else self.num_experts, in_features, self.rank),
        ('expert', in_axis, 'rank'),
    )
    lora_b = self.param_with_axes(
        'lora_b',
        nn.initializers.zeros,
        (1 if self.share_b else self.num_experts, self.rank, out_features),
        ('expert', 'rank', out_axis),
    )
    dtype = self.dtype or outputs.dtype
    lora_a = self._draw(lora_a, inputs, tokens, 'router').astype(dtype)
    lora_b = self._draw(lora_b, inputs, tokens, 'router_up').astype(dtype)
    update = inputs.astype(dtype) @ lora_a @ lora_b * (self.alpha / self.rank)
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def _draw(self, kernels, inputs, tokens, name):
    """Returns the kernel of this batch, or the mean of all at evaluation."""
    if kernels.shape[0] == 1:
      return kernels[0]
    decision = self.route(inputs, tokens, name=name)
    # Drawn for the whole batch; padding alone has no weights.
    weights = decision.combine_weights.max(axis=(0, 1))
    return jnp.einsum('e,eio->io', weights, kernels)
