# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Results of the bare base, kept for all runs that have the same."""

import hashlib
import json
from pathlib import Path

from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.models import dataset_ids
from moe_peft.runs import results_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import scoring


def of(
    setup: experiment_lib.Setup, evaluator: evaluator_lib.Evaluator
) -> evaluator_lib.Results:
  """Reads the results of an experiment's base, or evaluates it and keeps them.

  Args:
    setup: The experiment on its devices.
    evaluator: The experiment's.
  """
  experiment, digest = setup.experiment, _digest(setup, evaluator)
  path = experiment.run_dir / 'base_results.json'
  if experiment.base_results_dir is not None:
    path = Path(experiment.base_results_dir).expanduser() / f'{digest}.json'
  if (known := results_file.read_base(path, digest)) is not None:
    return known
  results = scoring.evaluate(
      evaluator,
      'base',
      experiment.model.without_adapters(),
      scoring.base_params({**setup.trainable, **setup.frozen}),
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  results_file.write_base(path, digest, results)
  return results


def _digest(
    setup: experiment_lib.Setup, evaluator: evaluator_lib.Evaluator
) -> str:
  """A hash of all that the results of the base depend on."""
  experiment = setup.experiment
  what = {
      # Where no file holds the base, the seed makes it.
      'base': setup.base if setup.base['sha256'] else experiment.seed,
      'network': repr(experiment.model.without_adapters().module),
      'dtype': str(experiment.base_dtype),
      'first id': experiment.model.start_id,
      'stop ids': dataset_ids.stop_ids(experiment.model.output_vocabulary),
      'task': experiment.eval_name,
      'split': experiment.eval_split,
      'lengths': dict(experiment.task_feature_lengths),
      'scored': evaluator.fingerprint,
  }
  digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
  return digest.hexdigest()[:16]
