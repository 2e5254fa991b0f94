# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stock `t5x.eval` and `t5x.infer` read checkpoints of adapters alone."""

import json
import shutil

import pytest

from moe_peft import errors
from moe_peft.training import checksums
from tests import refusals
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

SIZES = {'NUM_EXPERTS': 3, 'RANK': 2}
# So large that the outputs change in a few steps.
TRAINING = networks.FEW_SITES + 'LEARNING_RATE = 0.3\n'


@pytest.fixture(scope='module')
def runs(bases, tmp_path_factory):
  """The same training, saved as adapters alone and saved whole."""
  base, _ = bases('examples.t5')
  folder = tmp_path_factory.mktemp('runs')
  for name, includes in (
      ('adapters', "include 'gin/runs/t5x_adapter_checkpoints.gin'"),
      ('whole', ''),
  ):
    training.train(
        networks.adapted('molora', includes=includes, more=TRAINING),
        folder / name,
        INITIAL_CHECKPOINT_PATH=base,
        TRAIN_STEPS=3,
        **SIZES,
    )
  return folder


def read_lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def evaluate(checkpoint, folder, **macros):
  """Returns the aggregate, and the outputs for each task, line by line."""
  config = networks.adapted(
      'molora', run='t5x_eval', more=networks.FEW_SITES
  )
  training.run(
      'eval', config, folder, CHECKPOINT_PATH=str(checkpoint), **macros
  )
  folder /= 'inference_eval'
  outputs = [
      read_lines(folder / f'{task}-000003.jsonl')
      for task in (training.TASK, training.CHOICES_TASK)
  ]
  return json.loads((folder / 'aggregate.json').read_text()), outputs


def test_results_are_those_of_the_whole_checkpoint(runs, tmp_path, caplog):
  results, outputs = evaluate(
      runs / 'adapters' / 'checkpoint_3', tmp_path / 'adapters', **SIZES
  )
  assert 'not the method' not in caplog.text
  expected = evaluate(
      runs / 'whole' / 'checkpoint_3', tmp_path / 'whole', **SIZES
  )
  assert (results, outputs) == expected
  (row,) = results.values()
  exact_match = row['tasks'][training.TASK]['exact_match']
  accuracy = row['tasks'][training.CHOICES_TASK]['accuracy']
  assert row['mean'] == {'exact_match': exact_match, 'accuracy': accuracy}
  # 32 questions of two choices: every score was one of its own.
  scores = [line['score'] for line in outputs[1]]
  assert len(scores) == 64 and len(set(scores)) > 32


def test_inference_gives_the_same_answers(runs, tmp_path):
  found = {}
  for name in ('adapters', 'whole'):
    for mode in ('predict', 'score'):
      training.run(
          'infer',
          networks.adapted(
              'molora',
              imports='import __main__ as infer_script',
              more=f"{networks.FEW_SITES}infer_script.infer.mode = '{mode}'",
              run='t5x_infer',
          ),
          tmp_path / name,
          CHECKPOINT_PATH=str(runs / name / 'checkpoint_3'),
          **SIZES,
      )
    files = sorted((tmp_path / name).glob('*.jsonl-00000-of-00001'))
    found[name] = {file.name: read_lines(file) for file in files}
  assert len(found['adapters']) == 4
  assert found['adapters'] == found['whole']


def test_a_base_that_was_moved_is_named_and_may_be_given(
    bases, runs, tmp_path
):
  base, _ = bases('examples.t5')
  moved = tmp_path / 'moved' / 'checkpoint_1'
  shutil.copytree(base, moved)
  checkpoint = tmp_path / 'run' / 'checkpoint_3'
  shutil.copytree(runs / 'adapters' / 'checkpoint_3', checkpoint)
  file = next(checkpoint.glob('base/*'))
  file.write_text(file.read_text().replace(base, '/nowhere/checkpoint_1'))
  # As if the checkpoint had been written so, and not damaged since.
  checksums.Handler().finalize(checkpoint / checksums.ITEM)
  with pytest.raises(errors.UserError, match='/nowhere/checkpoint_1'):
    evaluate(checkpoint, tmp_path / 'a', **SIZES)
  results, _ = evaluate(
      checkpoint, tmp_path / 'b', BASE_PATH=str(moved), **SIZES
  )
  assert results


def test_a_setting_that_no_shape_tells_of_is_named(runs, tmp_path, caplog):
  checkpoint = runs / 'adapters' / 'checkpoint_3'
  evaluate(checkpoint, tmp_path, ALPHA=3.0, **SIZES)
  assert 'not the method' in caplog.text and 'ALPHA was' in caplog.text


@pytest.mark.parametrize('sizes', [{'NUM_EXPERTS': 4}, {'RANK': 1}])
def test_adapters_of_another_size_are_refused(runs, tmp_path, sizes):
  with refusals.refused('CHECKPOINT_PATH or MODEL_DIR', 'lora_a', 'RANK'):
    evaluate(
        runs / 'adapters' / 'checkpoint_3', tmp_path / 'run', **SIZES | sizes
    )
