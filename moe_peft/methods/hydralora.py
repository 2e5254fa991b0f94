# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""HydraLoRA (arXiv 2404.19245): one lora_a for all experts, a lora_b each.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a) @ lora_b[e]

From the paper's code: soft router on the inputs, rank 4, alpha 32, 4 experts,
the matrices of the MLP as sites. Its dropout on the inputs, drawn anew for
each expert, is left out.
"""

from flax import linen as nn

from moe_peft.methods import molora


class HydraLoRA(molora.MoLoRA):
  """MoLoRA with a shared `lora_a` [1, in, rank]."""

  num_experts: int = 4
  alpha: float = 32.0

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [1, in, rank] and `lora_b` [num_experts, rank, out]."""
    in_axis, out_axis = self.site.kernel_axis_names
    lora_a = self.param_with_axes(
        'lora_a',
        nn.initializers.normal(stddev=2e-2),
        (1, in_features, self.rank),
        ('expert', in_axis, 'rank'),
    )
    lora_b = self.param_with_axes(
        'lora_b',
        nn.initializers.zeros,
        (self.num_experts, self.rank, out_features),
        ('expert', 'rank', out_axis),
    )
    return lora_a, lora_b
