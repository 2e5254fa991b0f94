# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MLAE (arXiv 2405.18897): rank-one experts with coefficients and dropout.

  outputs + sum_j drop(coefficient)_j * (inputs @ lora_a[:, j]) @ lora_b[j]

There is no router: while training whole ranks are dropped at random, once for a
batch and site, and after it this is a plain LoRA. It is a control for what
routing adds. From the released code: coefficients begin at alpha and there is
no division by the rank, inverted dropout. Ours: rank 16, alpha 1, a rate of
0.1.
"""

from flax import linen as nn

from moe_peft.methods import lora


class MLAE(lora.LoRA):
  """LoRA whose ranks have learned coefficients, and are dropped.

  Attributes:
    expert_dropout: Rate at which ranks are dropped while training.
  """

  rank: int = 16
  alpha: float = 1.0
  expert_dropout: float = 0.1

  @property
  def scale(self) -> float:
    return 1.0

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a`, and `lora_b` times the coefficients."""
    lora_a, lora_b = super().kernels(in_features, out_features)
    coefficient = self.param_with_axes(
        'coefficient', nn.initializers.constant(self.alpha), (self.rank,),
        ('rank',),
    )
    coefficient = self.drop(coefficient, self.expert_dropout)
    return lora_a, lora_b * coefficient[:, None]
