# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands, one short file each: flags, messages, exit codes."""
