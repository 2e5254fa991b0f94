# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters on the layers of an unchanged model: sites, routing, dispatch."""
