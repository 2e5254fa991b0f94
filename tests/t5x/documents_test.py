# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The leaves and commands of docs/t5x.md, run as they are printed."""

import json
import shutil
import subprocess

import pytest

from tests import docs_test
from tests.t5x import processes

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

# Bindings that make commands shorter. Of the quickstart only the base is needed
# here, of its leaf that it trains; the runs in between have all tasks.
_SHORTER = {
    'moe_peft.train': (
        'TRAIN_STEPS=1 WARMUP_STEPS=0 EVAL_EXAMPLES=8'
        ' MIXTURE_OR_TASK_NAME=past_tense'
    ),
    'moe_peft t5x_config': (
        'TRAIN_STEPS=1 WARMUP_STEPS=0 MIXTURE_OR_TASK_NAME=past_tense'
    ),
    't5x.train': 'BATCH_SIZE=8 EVAL_STEPS=1 EVALUATOR_NUM_EXAMPLES=8',
    't5x.eval': 'seqio.Evaluator.num_examples=8',
}


def _shorter(commands):
  """Printed commands with further flags."""
  for start, bindings in _SHORTER.items():
    more = ''.join(f' --gin.{binding}' for binding in bindings.split())
    commands = commands.replace(
        f'python -m {start} ', f'python -m {start}{more} '
    )
  return commands


def test_train_evaluate_and_infer_as_printed(tmp_path):
  for name, text in docs_test.EXAMPLES.items():
    (tmp_path / name).write_text(text)
  for folder in ('gin', 'configs'):
    shutil.copytree(docs_test.ROOT / folder, tmp_path / folder)
  blocks = docs_test.BLOCK.findall(docs_test.DOCUMENTS['docs/t5x.md'])
  # Without the installation, which comes first.
  printed = [text for language, text in blocks[1:9] if language == 'sh']
  assert printed[0].startswith(docs_test.QUICKSTART)
  assert all(f'python -m {x} ' in ''.join(printed) for x in _SHORTER)
  for commands in printed:
    result = subprocess.run(
        ['bash', '-ec', _shorter(commands)], cwd=tmp_path, capture_output=True,
        text=True, env=processes.environment(1), check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
  run = tmp_path / 'runs/t5x'
  assert {x.name for x in run.glob('checkpoint_*')} >= {'checkpoint_100'}
  scores = json.loads((run / 'eval/inference_eval/aggregate.json').read_text())
  assert scores
  answers = list((run / 'infer').glob('past_tense*'))
  assert answers and answers[0].read_text().count('\n') > 10
  assert list((tmp_path / 'exported').glob('*.safetensors'))
