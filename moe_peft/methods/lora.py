# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA (arXiv 2106.09685): MoLoRA with one expert.

  outputs + alpha / rank * (inputs @ lora_a) @ lora_b
"""

from moe_peft.methods import molora


class LoRA(molora.MoLoRA):
  """Adds a low-rank update to the outputs; no router.

  Its arrays have MoLoRA's layout, with an expert axis of size one.
  """

  num_experts: int = 1
