# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of runs: reads the files of runs and nothing else."""
