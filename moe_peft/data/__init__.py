# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks: words, local files, and what is known about each task."""
