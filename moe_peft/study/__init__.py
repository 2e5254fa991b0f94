# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Studies: folders of experiments that are run, resumed and tabulated."""
