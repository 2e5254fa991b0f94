# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The leaves of configs/pod are read, without rows and without a tokenizer."""

import gin
import pytest

from moe_peft import gin_files

pytest.importorskip('t5x')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

FILES = sorted(gin_files.resource('configs/pod').glob('*.gin'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_a_leaf_is_read_without_rows_or_tokenizer(file):
  planning.load([str(file)], ['TRAIN_STEPS=10'], '')
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  config = model.module.module.config
  assert config.scan_layers and config.remat_policy == 'full'
  partitions = gin.query_parameter('%NUM_MODEL_PARTITIONS')
  assert config.num_kv_heads % partitions == 0
  if file.stem in ('llama3_1_8b_molora', 'gemma3_1b_sira'):
    step = planning.step()
    assert step.choices['packing'] and step.choices['base_dtype'] == 'bfloat16'
    assert step.batch['decoder_loss_weights'].shape == (64, 2048)
