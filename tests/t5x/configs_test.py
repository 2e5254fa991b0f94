# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The configurations of the papers' rows are read and build their models."""

import inspect

import gin
import jax
import jax.numpy as jnp
import pytest

from moe_peft import gin_files
from moe_peft.core import trainable
from tests.methods import counts_test
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

AS_THEY_ARE = ('large_full', 'xl_ia3', 'xxl_mov_10')
FILES = sorted(gin_files.resource('configs/t0').glob('*.gin'))
NAMES = {
    'lora_r4': 'lora-4',
    'lora_r16': 'lora-16',
    **{f'mov_{e}': f'mov-{e}' for e in (10, 30, 60)},
    **{f'molora_{e}': f'molora-{e}' for e in (10, 15)},
    'ia3': 'ia3',
}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_a_row_builds_its_model(file, tmp_path):
  macros = {
      'MODEL_DIR': str(tmp_path), 'INITIAL_CHECKPOINT_PATH': 'checkpoint_1'
  }
  if file.stem not in AS_THEY_ARE:
    macros['SCAN_LAYERS'] = True  # The same parameters, quicker to trace.
  with training.parsed('train', [file], **macros) as train:
    assert gin.config_is_locked()
    # Everything that `train` needs is bound, and can be made.
    bound = gin.get_bindings(train)
    required = {
        name
        for name, parameter in inspect.signature(train).parameters.items()
        if parameter.default is parameter.empty
    }
    assert required <= set(bound)
    model = bound['model']
    tokens = ('encoder_input', 'decoder_input', 'decoder_target')
    shapes = jax.eval_shape(
        lambda: model.get_initial_variables(
            jax.random.key(0),
            {f'{name}_tokens': (1, 4) for name in tokens},
            {f'{name}_tokens': jnp.int32 for name in tokens},
        )['params']
    )
    regex = gin.query_parameter('%TRAINABLE_REGEX')
  params, frozen = trainable.split(trainable.flatten(shapes), regex)
  size, _, name = file.stem.partition('_')
  if name == 'full':
    assert not frozen
  key = (size, NAMES.get(name))
  if key in counts_test.COUNTS:
    assert trainable.num_params(params) == counts_test.COUNTS[key]
  else:
    assert params
