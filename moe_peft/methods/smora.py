# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMoRA (arXiv 2501.15103): each rank of one LoRA is an expert.

  outputs + alpha * sum_j weight_j * (inputs @ lora_a[j]) @ lora_b[j]

over ranks j, with `weight` the renormalised sigmoid scores of the k best
ranks; the paper's factor k and its scale alpha / k give alpha. The load is
balanced by a bias and no loss: see `gating.balance_by_gradient` for how that
rule became a gradient. From the released layer: sigmoid, top-k,
renormalisation, the bias entering the weights too. Ours: 64 ranks, 8 selected,
alpha 1.
"""

from collections.abc import Callable
from typing import Any

from moe_peft.core import routing
from moe_peft.methods import molora


class SMoRARouter(routing.Router):
  """Sigmoid scores, top-k, renormalised, with a balancing bias."""

  score: str = 'sigmoid'
  selection: str = 'top_k'
  num_selected_experts: int | None = 8
  renormalise: bool = True
  balancing_bias: bool = True
  bias_in_gate: bool = True


class SMoRA(molora.MoLoRA):
  """MoLoRA whose experts have rank one; `num_experts` is the total rank."""

  num_experts: int = 64
  rank: int = 1
  alpha: float = 1.0
  router_factory: Callable[..., Any] = SMoRARouter
