# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What cannot work under `t5x.train` is said at once, with the remedy."""

import pytest

from moe_peft import errors
from tests.t5x import networks
from tests.t5x import processes
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


@pytest.mark.parametrize(
    ('macros', 'sizes', 'words'),
    [
        ({}, 'network.T5Config.emb_dim = 16', 'is of another model .*shapes'),
        ({}, 'network.T5Config.num_decoder_layers = 2', 'missing: decoder/l'),
        (
            {'INITIAL_CHECKPOINT_PATH': '/nowhere/checkpoint_1'},
            '',
            '/nowhere/checkpoint_1 does not exist',
        ),
        (
            {'MIXTURE_OR_TASK_NAME': 'past_tens'},
            '',
            'Unknown task or mixture .past_tens.*Nearest names: past_tense',
        ),
        ({'SITES': '.*/atention/.*'}, '', 'no layer'),
    ],
)
def test_one_message_before_any_step(tmp_path, macros, sizes, words):
  base = processes.write_base(tmp_path)
  config = networks.adapted(
      'molora',
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more=sizes,
  )
  macros = {
      'INITIAL_CHECKPOINT_PATH': base,
      'TRAIN_STEPS': 2,
      'NUM_EXPERTS': 3,
      'RANK': 2,
      **macros,
  }
  with pytest.raises(errors.UserError, match=words):
    training.train(config, tmp_path / 'run', **macros)
  assert not list((tmp_path / 'run').glob('checkpoint_*'))
