# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writers of scalars write what they are for and ignore the rest."""

import types

from moe_peft.runs import metrics_files
from moe_peft.training import writers


def test_rows_have_the_step_and_all_scalars(tmp_path):
  file = tmp_path / 'train.jsonl'
  writer = writers.RowWriter(metrics_files.JsonLines(file, 0))
  writer.write_scalars(3, {'loss': 1.5})
  writer.write_histograms(3, {'weights': [1.0]})
  writer.close()
  assert metrics_files.read_lines(file)[0] == [{'step': 3, 'loss': 1.5}]


def test_the_line_of_progress_shows_a_few_scalars():
  shown = []
  progress = types.SimpleNamespace(update=lambda *line: shown.append(line))
  scalars = {'loss': 1.5, 'tokens_per_second': 1234.5, 'grad_norm': 7.0}
  writers.ProgressWriter(progress).write_scalars(3, scalars)
  assert shown == [(3, 'loss 1.500  1,234 tokens/s')]
