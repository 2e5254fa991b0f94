# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run on a quantized base goes to its end, and its commands work."""

import json

import pytest

from moe_peft import evaluate
from moe_peft import infer
from moe_peft.cli import report
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
