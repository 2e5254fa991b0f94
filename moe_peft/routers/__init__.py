# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What routers did, measured: usage, snapshots, similarity, statistics."""
