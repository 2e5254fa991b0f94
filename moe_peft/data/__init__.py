# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SeqIO machinery: tasks, rows, vocabularies, metrics, caches."""
