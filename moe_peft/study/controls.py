# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of a study's runs with their routing replaced."""

from collections.abc import Sequence
import sys

from moe_peft.runs import controls_file
from moe_peft.runs import usage_file
from moe_peft.study import configurations as configurations_lib
from moe_peft.study import processes
from moe_peft.study import records as records_lib


def measure(
    configurations: Sequence[configurations_lib.Configuration],
    records: records_lib.Records,
    options: configurations_lib.StudyOptions,
) -> None:
  """Scores the runs that are here and route, where it is not known yet.

  Args:
    configurations: What the study has trained.
    records: Its records, which get the scores.
    options: What the command line says.

  Raises:
    errors.UserError: If one fails, as for a run that has no controls.
    processes.Stopped: After a signal.
  """
  known = {(row['name'], row['seed']): row for row in records.rows}
  runs = [
      c.run(seed, known[c.name, seed].get('tuned', {}), options.split)
      for c in configurations for seed in c.seeds
      if (c.name, seed) in known
      and records_lib.CONTROLS not in known[c.name, seed]
  ]
  routed = [run for run in runs if (run.folder / usage_file.FILE).is_file()]

  def done(index: int) -> None:
    run = routed[index]
    scores = dict(controls_file.read(run.folder).scores)
    del scores[controls_file.TRAINED]  # The row has it.
    records.add_controls(run.configuration.name, run.seed, scores)
    print(f'[{index + 1}/{len(routed)} ablated] {run.folder}',
          file=sys.stderr, flush=True)

  trust = ['--trust_gin'] if options.trust_gin else []
  processes.run_all(
      [
          (run.folder, ['ablate', str(run.folder), '--routing',
                        f'--split={options.split}', *trust])
          for run in routed
      ],
      options.jobs, done, 'moe_peft', 'ablation',
  )
