# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The choice of a size before T5X locks its configuration."""

import gin
import pytest

from moe_peft import gin_files

pytest.importorskip('t5x')
gin_check = pytest.importorskip('moe_peft.t5x.gin_check')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


@pytest.mark.parametrize('engine', ['t5x', 'embedded'])
def test_only_configurations_of_t5x_are_decided_here(engine):
  if engine == 'embedded':  # Its engine decides when it builds the experiment.
    gin_files.load_gin(
        ['configs/quickstart.gin'], ['MODEL_DIR=no', 'PARAM_BUDGET=0.05']
    )
    assert gin_check.macro('RANK') == 4
    return
  planned = planning.subject(
      ['configs/t0/large_lora_r8.gin'], ['PARAM_BUDGET=1000000'], ''
  )
  assert gin.config_is_locked() and gin_check.macro('RANK') == 1
  assert planned.trainable_regex == gin_check.macro('TRAINABLE_REGEX')
  assert gin_check.macro('NO_SUCH_MACRO', 3) == 3
