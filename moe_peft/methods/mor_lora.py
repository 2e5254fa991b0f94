# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hard-routed MoR-LoRA (arXiv 2606.31413): one expert a token, with weight 1.

  outputs + alpha / rank * (inputs @ lora_a[best]) @ lora_b[best]

The weight is 1 and not the probability, so an expert counts as it was trained:
`1 + p - stop(p)`, whose value is 1 and whose gradient is that of p
(straight-through; that only the chosen expert's p has one is ours). With more
than one expert a token, each has the weight 1 / k: the equal weights of ReMix
(2603.10160), without its REINFORCE. Ours: 8 experts of rank 4, the sites, and
that experts train beside the router; the paper's attention LoRA is left out.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class StraightThrough(selection.TopK):
  """The k best experts with equal weights, and a gradient for the router."""

  k: int | None = 1

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    selected = selection.select_top_k(probs, self.num_selected(context))
    selected &= probs > 0  # Dropped, or not at this layer.
    gates = (selected + (probs - jax.lax.stop_gradient(probs))) / self.k
    return self.decide(probs, gates, selected)


class MoRLoRARouter(routing.Router):
  """Top-1 with weight 1."""

  select: Any = StraightThrough()


class MoRLoRA(molora.MoLoRA):
  """MoLoRA under the hard router."""

  num_experts: int = 8
  router_factory: Callable[..., routing.Router] = MoRLoRARouter
