# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mutated files for every reader; `python -m tests.fuzz --help`."""
