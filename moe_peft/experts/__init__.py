# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Changes the set of experts: ablation and pruning of runs, banks of LoRAs."""
