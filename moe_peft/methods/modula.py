# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoDULA-Res (arXiv 2412.07405): a universal expert beside the routed ones.

  outputs + alpha / rank * (inputs @ shared_lora_a) @ shared_lora_b
          + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]

The universal expert is always on: it has parameters of its own, so that a
regular expression can freeze it, and counts in no softmax, loss or statistic.
The paper trains it on general data, each domain's expert on its own, and then
the router alone (TRAINABLE_REGEX = '.*/adapter/router/.*'). Ours, as the
paper's tables could not be read: soft routing, 8 experts of rank 4, alpha 16.
"""

from flax import linen as nn

from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.methods import molora


class MoDULARes(molora.MoLoRA):
  """MoLoRA and one expert that every token uses."""

  num_experts: int = 8

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    dtype = self.dtype or outputs.dtype
    lora_a, lora_b = low_rank.lora_kernels(
        self, inputs.shape[-1], outputs.shape[-1], self.site.kernel_axis_names,
        num_a=1, num_b=1, prefix='shared_',
    )
    x = inputs.astype(dtype)
    shared = dispatch.down('all_experts', x, lora_a.astype(dtype), None)
    update = shared.up((lora_b * self.scale).astype(dtype))
    return super().__call__(inputs, outputs, tokens) + update.astype(
        outputs.dtype
    )
