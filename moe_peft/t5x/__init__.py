# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything that touches T5X; nothing else in the package imports it."""
