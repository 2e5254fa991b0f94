# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bases imported from Hugging Face folders train under stock `t5x.train`."""

import json

import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.hf import import_base
from tests.hf import conftest as models
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


@pytest.mark.parametrize(
    ('layout', 'network'),
    [
        ('t5', 'examples.t5'),
        ('scan', 'examples.scalable_t5'),
        pytest.param('scan', 'own', marks=pytest.mark.long),
        ('unrolled', 'examples.scalable_t5'),
    ],
)
def test_only_adapters_of_an_imported_base_train(tmp_path, layout, network):
  # The sizes of networks.NETWORKS.
  num_layers = 1 if network == 'examples.t5' else 2
  config = {
      **models.SMALL,
      'vocab_size': 384,
      'd_model': 8,
      'd_kv': 4,
      'd_ff': 16,
      'num_heads': 8,
      'num_layers': num_layers,
      'num_decoder_layers': num_layers,
  }
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  base = tmp_path / 'base'
  import_base.import_base(folder, base, layout)
  # The same parameters by name, read independently.
  flat = tmp_path / 'flat'
  import_base.import_base(folder, flat, layout, 'safetensors')
  expected = safetensors_numpy.load_file(flat / 'model.safetensors')
  assert json.loads((base / 'source.json').read_text())['layout'] == layout
  unrolled = 'network.T5Config.scan_layers = False\n'
  state = training.train(
      networks.adapted(
          'molora', network,
          more=networks.FEW_SITES + unrolled * (layout == 'unrolled'),
      ),
      tmp_path / 'run',
      INITIAL_CHECKPOINT_PATH=str(base / 'checkpoint_0'),
      TRAIN_STEPS=2,
      NUM_EXPERTS=3,
      RANK=2,
  )
  training.check_trained(state, expected, 2)
