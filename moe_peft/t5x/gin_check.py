# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Missing macros are one message under T5X too: gin files import this module.

T5X parses gin itself, and then finalizes the configuration. Gin checks it there
with functions that anybody may add. Ours has to be the first of them, or gin's
own would complain before it, about one macro and without a remedy.
"""

from typing import Any

import gin

from moe_peft import gin_files


def _check(config: Any) -> None:
  del config  # The one that `gin_files` reads.
  gin_files.check_macros()


gin.config._FINALIZE_HOOKS.insert(0, _check)  # pylint: disable=protected-access
