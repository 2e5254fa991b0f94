# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, as ratios in one run: `python -m benchmarks`."""
