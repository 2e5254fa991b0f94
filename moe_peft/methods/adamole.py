# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMoLE (arXiv 2405.00361): an adaptive number of LoRA experts per token.

  tau = max_threshold * sigmoid(inputs @ threshold_kernel + threshold_bias)
  weight_e = relu(p_e - tau) / sum_j relu(p_j - tau),  p = softmax(logits)

From the paper: 8 experts of rank 4, alpha 16, max_threshold 1 / num_experts
(for which at least one expert is always used), the sites. The auxiliary loss
here is Switch's on p, the released code's is on p - tau.
"""

from collections.abc import Callable
from typing import Any

from moe_peft.core import routing
from moe_peft.methods import molora


class AdaMoLERouter(routing.Router):
  """Keeps the experts whose probability exceeds a learned threshold."""

  selection: str = 'threshold'
  renormalise: bool = True


class AdaMoLE(molora.MoLoRA):
  """MoLoRA under AdaMoLE's router."""

  num_experts: int = 8
  router_factory: Callable[..., Any] = AdaMoLERouter
