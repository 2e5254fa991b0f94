# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts parameter-efficient fine-tuning in JAX and Flax."""
