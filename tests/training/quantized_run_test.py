# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run on a quantized base goes to its end, and its commands work."""

import json

import numpy as np
import pytest

from moe_peft import evaluate
from moe_peft import infer
from moe_peft.cli import report
from moe_peft.core import quantized
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import run
from tests.training import tiny


@pytest.mark.slow
def test_a_run_on_int8_from_data_to_answers(tmp_path, capsys):
  tiny.load(tmp_path, BASE_DTYPE='int8', TRAIN_STEPS=2)
  run.run_experiment()
  cosines = json.loads((tmp_path / 'similarity.json').read_text())
  assert cosines  # Of the experts alone: kernels of the base are no arrays.
  assert json.loads((tmp_path / 'run.json').read_text())['seconds'] > 0
  evaluate.main([str(tmp_path), '--split=validation'])
  scored = json.loads((tmp_path / 'results_validation.json').read_text())
  assert set(scored['tasks']) == {'past_tense'}
  questions = tmp_path / 'questions.txt'
  questions.write_text('past tense: walk\n')
  capsys.readouterr()
  infer.main([str(tmp_path), str(questions), '--json'])
  assert isinstance(json.loads(capsys.readouterr().out.splitlines()[-1]), str)
  report.main([str(tmp_path)])
  assert 'past_tense' in (tmp_path / 'report.html').read_text()


@pytest.mark.parametrize('kind', quantized.KINDS)
def test_layers_of_a_scan_are_read_from_a_base(tmp_path, kind):
  """In a file they lie behind the inputs, as in the network; here first."""
  sizes = {
      'SCAN_LAYERS': True, 't5.T5Config.num_encoder_layers': 2,
      'SITES': '.*/wo',
  }
  made = experiment_lib.prepare(tiny.experiment(tmp_path, **sizes))
  base = tmp_path / 'base'
  bases.save_base(made.frozen, base)
  setup = experiment_lib.prepare(tiny.experiment(
      tmp_path, **sizes, BASE_DTYPE=kind, INITIAL_CHECKPOINT_PATH=str(base)
  ))
  path = 'encoder/encoder/mlp/wi_0/kernel'
  stored, kernel = setup.frozen[path], np.asarray(made.frozen[path])
  assert stored.kind == kind and kernel.shape == (16, 2, 32)
  found = np.moveaxis(np.asarray(stored.unbox()), 0, 1)
  largest = np.abs(kernel).max()
  np.testing.assert_allclose(
      found, kernel, atol=largest * (0.01 if kind == 'int8' else 0.2)
  )
