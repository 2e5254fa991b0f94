# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The bare base is evaluated once for all runs that have the same one."""

import types

from moe_peft.training import base_results
from moe_peft.training import scoring

RESULTS = {'task': {'loss': 1.5}}


def setup(run_dir, folder=None, seed=0, sha256='0', start=0, stops=(1,)):
  bare = types.SimpleNamespace(module='network')
  model = types.SimpleNamespace(
      without_adapters=lambda: bare, start_id=start,
      output_vocabulary=types.SimpleNamespace(eos_id=1, stop_ids=stops),
  )
  experiment = types.SimpleNamespace(
      run_dir=run_dir, base_results_dir=folder, model=model, seed=seed,
      base_dtype='float32', eval_name='task', eval_split='validation',
      task_feature_lengths={'inputs': 8, 'targets': 4},
  )
  base = {'path': sha256 and '/base', 'sha256': sha256}
  return types.SimpleNamespace(
      experiment=experiment, base=base, trainable={}, frozen={}
  )


def test_runs_of_one_base_evaluate_it_once(tmp_path, monkeypatch):
  evaluated = []

  def evaluate(evaluator, title, model, params):
    evaluated.append(title)
    return RESULTS

  monkeypatch.setattr(scoring, 'evaluate', evaluate)
  evaluator = types.SimpleNamespace(fingerprint='rows')
  shared = tmp_path / 'shared'
  for name in ('first', 'second'):
    found = base_results.of(setup(tmp_path / name, shared), evaluator)
    assert found == RESULTS
  assert evaluated == ['base']
  # Another base, other rows, and a run that names no folder have their own.
  base_results.of(setup(tmp_path / 'first', shared, sha256='1'), evaluator)
  others = types.SimpleNamespace(fingerprint='other rows')
  base_results.of(setup(tmp_path / 'first', shared), others)
  assert len(evaluated) == len(list(shared.iterdir())) == 3
  base_results.of(setup(tmp_path / 'alone'), evaluator)
  assert len(evaluated) == 4
  assert (tmp_path / 'alone/base_results.json').is_file()
  # The seed makes a base that no file holds, and no other.
  for seed, sha256 in ((0, None), (1, None), (1, None), (1, '0')):
    base_results.of(setup(tmp_path / 'x', shared, seed, sha256), evaluator)
  assert len(evaluated) == 6
  # Rows may begin, and answers end, with other tokens.
  for options in ({'start': 2}, {'start': None}, {'stops': (1, 7)}):
    base_results.of(setup(tmp_path / 'x', shared, **options), evaluator)
  assert len(evaluated) == 9
