# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Expert choice (arXiv 2202.09368): each expert takes its best tokens.

Experts are MoLoRA's. Every expert has `capacity_factor * length / num_experts`
slots in a row and fills them with the tokens of highest probability; a token
may get any number of experts, and the load is balanced without a loss. Since a
token competes with later ones, decoders refuse it. From the paper: the
selection, the weights (probabilities). Ours: capacity factor 2, also at
evaluation, and groups of one row.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from moe_peft.core import capacity as capacity_lib
from moe_peft.core import routing
from moe_peft.methods import molora


class ExpertChoiceRouter(routing.Router):
  """Experts choose tokens."""

  selection: str = 'expert_choice'
  capacity: capacity_lib.Capacity | None = dataclasses.field(
      default_factory=lambda: capacity_lib.Capacity(capacity_factor=2.0)
  )


class ExpertChoice(molora.MoLoRA):
  """MoLoRA whose experts choose their tokens."""

  num_experts: int = 8
  router_factory: Callable[..., Any] = ExpertChoiceRouter
