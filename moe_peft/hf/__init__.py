# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face formats: import of bases and experts, export, verification.

Nothing here needs torch, transformers or peft, except to load a folder that
was exported (`verify`).
"""
