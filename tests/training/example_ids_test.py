# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs whose examples have ids, as the engine builds them."""

import numpy as np
import pytest

from moe_peft.data.sets import words as _words  # noqa: F401 (registers tasks)
from moe_peft.runs import results_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import objectives
from moe_peft.training import restored
from moe_peft.training import run
from moe_peft.training import scoring
from moe_peft.training import train_step
from tests.refusals import refused
from tests.training import tiny

TOLD = {
    'EXAMPLE_IDS': ('past_tense', 'article'), 'NUM_EXPERTS': 2,
    'SITES': '.*/wo', 'MIXTURE_OR_TASK_NAME': 'article', 'EVAL_EXAMPLES': 4,
}


@pytest.mark.slow
def test_batches_of_training_and_evaluation_have_them(tmp_path):
  experiment = tiny.experiment(tmp_path, 'lora_id', PACKING=True, **TOLD)
  setup = experiment_lib.lay_out(experiment)
  train_step.check(setup)
  batch = next(loop.train_data(experiment))
  shapes = {k: x.shape for k, x in train_step.abstract_batch(setup).items()}
  assert shapes == {k: x.shape for k, x in batch.items()}
  counts = np.asarray(batch['decoder_segment_ids']).max(axis=1)
  ids = np.asarray(batch['example_ids'])
  assert counts.max() > 1
  assert (ids == 2).sum(axis=1).tolist() == counts.tolist()
  assert loop.identity(setup)['EXAMPLE_IDS'] == ['past_tense', 'article']
  rows = scoring.make_evaluator(setup).first_rows(3)['article']
  assert rows['example_ids'].tolist() == [[2], [2], [0]]


@pytest.mark.slow
def test_runs_without_ids_are_as_before_or_refused(tmp_path):
  plain = tiny.experiment(tmp_path, MIXTURE_OR_TASK_NAME='article')
  assert 'example_ids' not in next(loop.train_data(plain))
  assert 'EXAMPLE_IDS' not in loop.identity(experiment_lib.lay_out(plain))
  with refused('EXAMPLE_IDS', 'id_key'):
    experiment_lib.lay_out(tiny.experiment(
        tmp_path, 'lora_id', **{**TOLD, 'EXAMPLE_IDS': None}
    ))


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_asked_by_id(tmp_path):
  tiny.load(tmp_path, 'lora_id', PACKING=True, LEARNING_RATE=0.5, **TOLD)
  run.run_experiment()
  restored.evaluate_run('test')
  results = results_file.read(tmp_path, 'results_test.json')
  assert set(results.adapted) == {'article'}
  lines = ['article: cat'] * 2
  both = list(restored.infer(lines, example_ids=['past_tense', 'article']))
  (untrained,) = restored.infer(lines[:1], example_ids=['past_tense'])
  (trained,) = restored.infer(lines[:1], example_ids=['article'])
  assert both == [untrained, trained] and trained != untrained
  with refused('--example_id', 'past_tense', 'article'):
    list(restored.infer(lines))


@pytest.mark.parametrize('ids', [('a', 'a'), (), 0, 'article'])
def test_ids_that_are_none_are_refused(ids, tmp_path):
  with refused('EXAMPLE_IDS'):
    tiny.experiment(tmp_path, 'lora_id', **{**TOLD, 'EXAMPLE_IDS': ids})


@pytest.mark.slow
def test_preferences_carry_no_ids(tmp_path):
  experiment = tiny.experiment(tmp_path, 'lora_id', **TOLD)
  fields = vars(experiment) | {'objective': objectives.DirectPreference()}
  with refused('EXAMPLE_IDS', 'None'):
    experiment_lib.Experiment(**fields)
