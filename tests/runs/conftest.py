# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run directory for the tests of this room."""

from tests.run_folder import make_run  # noqa: F401
from tests.run_folder import run_dir  # noqa: F401
