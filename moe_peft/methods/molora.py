# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixture of LoRA, MoLoRA (arXiv 2309.05444): experts are low-rank updates.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]
"""

from flax import linen as nn

from moe_peft.core import adapter
from moe_peft.core import low_rank


class MoLoRA(adapter.MoeAdapter):
  """Adds a mixture of low-rank updates to the outputs.

  From the paper's code: initial values, alpha 16, the sites of the gin file.
  There alpha is not a field; here it is.

  Attributes:
    rank: Rank of each expert.
    alpha: The update is scaled by `alpha / rank`.
  """

  rank: int = 4
  alpha: float = 16.0

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    mixture, _ = self.mix(inputs.astype(dtype), tokens, lora_a.astype(dtype))
    # Scaling lora_b and not the update saves a pass over the outputs.
    update = mixture.up((lora_b * (self.alpha / self.rank)).astype(dtype))
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [num_experts, in, rank] and `lora_b`."""
    return low_rank.lora_kernels(
        self, in_features, out_features, self.site.kernel_axis_names
    )
