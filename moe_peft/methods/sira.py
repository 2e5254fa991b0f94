# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SiRA (arXiv 2311.09179): sparse mixture of LoRA experts.

  gate = top_k(dropout(softmax(inputs @ kernel)))
  outputs + alpha / rank * sum_e gate_e * (inputs @ lora_a[e]) @ lora_b[e]

with at most `capacity` tokens per expert; a token whose experts are all full
keeps the frozen layer's output. There is no public code, and the paper's exact
equations were not at hand. From the paper: expert dropout, the capacity limit,
the auxiliary loss. Taken to be the paper's, and not checked: 16 experts, 4
selected, rank 4, capacity 4 read as a factor, the order softmax, dropout,
top-k, no normalization, the form of the loss. Ours: the dropout rate, its
scaling of what is left, alpha = rank (no scale).
"""

from collections.abc import Callable, Sequence
from typing import Any

from moe_peft.core import capacity as capacity_lib
from moe_peft.core import losses as losses_lib
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


class SiRARouter(routing.Router):
  """Top-k after dropout on the gate, with limited capacity."""

  select: Any = selection.TopK(k=4, dropout=0.1)
  capacity: capacity_lib.Capacity | None = capacity_lib.Capacity(
      capacity_factor=4.0
  )
  losses: Sequence[Any] = (
      losses_lib.LoadBalance('sira'), losses_lib.RouterZ()
  )


class SiRA(molora.MoLoRA):
  """MoLoRA under SiRA's router."""

  num_experts: int = 16
  rank: int = 4
  alpha: float = 4.0
  router_factory: Callable[..., routing.Router] = SiRARouter
