# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run would take: plans, programs for absent TPUs, their HLO."""
