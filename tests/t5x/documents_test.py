# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The leaves and commands of docs/t5x.md, run as they are printed."""

import json
import os
import shutil
import subprocess

import pytest

from tests import docs_test

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

# Of the quickstart only the base is needed here, of its leaf that it trains.
_SHORT = ' --gin.TRAIN_STEPS=1 --gin.WARMUP_STEPS=0'
_LEAF = 'my_t5x.gin --gin.MODEL_DIR'


def test_train_evaluate_and_infer_as_printed(tmp_path):
  for name, text in docs_test.EXAMPLES.items():
    (tmp_path / name).write_text(text)
  for folder in ('gin', 'configs'):
    shutil.copytree(docs_test.ROOT / folder, tmp_path / folder)
  blocks = docs_test.BLOCK.findall(docs_test.DOCUMENTS['docs/t5x.md'])
  # Without the installation, which comes first.
  first, *others = [text for language, text in blocks[1:9] if language == 'sh']
  quickstart, rest = first.split('\n', 1)
  assert quickstart == docs_test.QUICKSTART
  assert _LEAF in others[0]
  others[0] = others[0].replace(
      _LEAF, _LEAF.replace(' ', f'{_SHORT} --gin.EVALUATOR_NUM_EXAMPLES=8 ')
  )
  quickstart += f'{_SHORT} --gin.EVAL_EXAMPLES=8'
  for command in (quickstart, rest, *others):
    result = subprocess.run(
        ['bash', '-ec', command], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {'XLA_FLAGS': ''}, check=False,  # As a user's shell.
    )
    assert result.returncode == 0, result.stderr[-4000:]
  run = tmp_path / 'runs/t5x'
  assert {x.name for x in run.glob('checkpoint_*')} >= {'checkpoint_100'}
  scores = json.loads((run / 'eval/inference_eval/aggregate.json').read_text())
  assert scores
  answers = list((run / 'infer').glob('past_tense*'))
  assert answers and answers[0].read_text().count('\n') > 10
