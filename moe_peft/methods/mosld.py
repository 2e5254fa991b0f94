# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoSLD (COLING 2025): a shared lora_a with dropout on its weights.

  outputs + alpha / rank * sum_e weight_e * (inputs @ drop(lora_a)) @ lora_b[e]

`drop` zeroes single weights while training and scales the others by
1 / (1 - rate). From the paper: rate 0.1, rank 8, alpha 16, softmax, top-2,
normalized, queries and values as sites, 8/6/4/2 experts from bottom to top
(in the gin file, through methods/mola.py).
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import hydralora


class MoSLDRouter(routing.Router):
  """Normalized top-2."""

  select: Any = selection.TopK(k=2, normalize=True)


class MoSLD(hydralora.HydraLoRA):
  """HydraLoRA with dropout on `lora_a`.

  Attributes:
    weight_dropout: Rate of the dropout on the weights of `lora_a`.
  """

  num_experts: int = 8
  rank: int = 8
  alpha: float = 16.0
  router_factory: Callable[..., routing.Router] = MoSLDRouter
  weight_dropout: float = 0.1

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns the dropped `lora_a` [1, in, rank], and `lora_b`."""
    lora_a, lora_b = super().kernels(in_features, out_features)
    return self.drop(lora_a, self.weight_dropout), lora_b
