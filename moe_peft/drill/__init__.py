# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drills: small runs that are killed and damaged, and must lose nothing."""
