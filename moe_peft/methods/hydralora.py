# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""HydraLoRA (arXiv 2404.19245): one lora_a for all experts, a lora_b each.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a) @ lora_b[e]

From the paper's code: soft router on the inputs, rank 4, alpha 32, 4 experts,
the matrices of the MLP as sites. Its dropout on the inputs, drawn anew for
each expert, is left out.
"""

from flax import linen as nn

from moe_peft.core import low_rank
from moe_peft.methods import molora


class HydraLoRA(molora.MoLoRA):
  """MoLoRA with a shared `lora_a` [1, in, rank]."""

  num_experts: int = 4
  alpha: float = 32.0

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [1, in, rank] and `lora_b` [num_experts, rank, out]."""
    return low_rank.lora_kernels(
        self, in_features, out_features, self.site.kernel_axis_names, num_a=1
    )
