# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""(IA)^3 (arXiv 2205.05638): MoV with one expert.

  outputs * scaling
"""

from moe_peft.methods import mov


class IA3(mov.MoV):
  """Scales keys, values and the activated hidden of the MLP; no router."""

  num_experts: int = 1
