# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is done with the experts of a trained run: ablate, prune."""

import contextlib
import dataclasses
from pathlib import Path

import rich.console
import rich.table

from moe_peft import errors
from moe_peft.experts import ablation
from moe_peft.experts import pruning
from moe_peft.runs import ablation_file
from moe_peft.runs import run_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import metrics
from moe_peft.training import run


def ablate(split: str, rows: int) -> Path:
  """Writes `ablation.json` of the configured run.

  Args:
    split: Split of the rows.
    rows: Rows of each task.

  Returns:
    The folder of the run.

  Raises:
    errors.UserError: If there is no checkpoint, split or router.
  """
  setup, params, step, batches = _open(split, rows)
  _measure(setup, params, step, batches, split)
  return setup.experiment.run_dir


def prune(keep: int, out: Path, split: str, rows: int) -> None:
  """Writes a run with fewer experts and prints the losses.

  Args:
    keep: Experts that stay at each site.
    out: Its folder.
    split: Split of the rows on which losses are measured.
    rows: Rows of each task.

  Raises:
    errors.UserError: If the run cannot be pruned.
  """
  if (out / 'config.gin').exists():
    raise errors.UserError(
        f'--out {out} already holds a run; choose another folder.'
    )
  setup, params, step, batches = _open(split, rows)
  source = setup.experiment.run_dir
  # What cannot be pruned says so before experts are scored.
  routers = ablation.routers(
      setup.experiment.model, params, next(iter(batches.values()))
  )
  num_experts = pruning.check_routers(routers, keep)
  pruning.check_keep(num_experts, keep)
  measured = _known(source, step, batches, split) or _measure(
      setup, params, step, batches, split
  )
  pruned = pruning.write(
      setup, params, step, measured.scores(), batches, keep, out, run.build
  )
  info = run_file.read(source) or run_file.RunInfo()
  pruning.summary(info, pruned, source).write(out)
  rich.console.Console().print(_table(pruned))
  run.console.print(
      f'{keep} of {num_experts} experts at {len(pruned.kept)} sites; '
      f'{pruned.num_params:,} trainable parameters; written to {out}'
  )


def _open(split: str, rows: int):
  """The run on its devices, its parameters, their step, and rows by task."""
  if rows < 1:
    raise errors.UserError(f'--rows={rows} must be at least 1.')
  run.use_compilation_cache()
  experiment = run.build()
  # Answer choices count as rows, and the right ones must be among them.
  experiment = dataclasses.replace(experiment, eval_split=split)
  setup = experiment_lib.prepare(experiment)
  rows += -rows % setup.mesh.size
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    step = checkpointer.require_step()
    params = loop.restore_params(setup, checkpointer)
  return setup, params, step, run.make_evaluator(setup).first_rows(rows)


def _known(
    run_dir, step, batches, split
) -> ablation_file.Ablation | None:
  """What was measured before, if it is of this step and these rows."""
  known = ablation_file.read(run_dir)
  if known is None or known.is_of(step, split, _num_rows(batches)):
    return known
  run.console.print(
      f'{ablation_file.FILE} is of step {known.step}, split {known.split!r} '
      f'and rows {dict(known.rows)}, not of step {step}, split {split!r} and '
      f'rows {_num_rows(batches)}: the experts are scored anew.'
  )
  return None


def _measure(
    setup, params, step, batches, split
) -> ablation_file.Ablation:
  """Scores the experts, and writes `ablation.json`."""
  model = setup.experiment.model
  routers = ablation.routers(model, params, next(iter(batches.values())))
  progress = metrics.Progress('sites', len(routers))
  with contextlib.closing(progress):
    loss, without = ablation.leave_one_out(
        model, params, batches, setup.mesh, progress.advance
    )
  measured = ablation_file.Ablation(
      tuple(batches), loss, without, step, split, _num_rows(batches)
  )
  measured.write(setup.experiment.run_dir)
  return measured


def _num_rows(batches) -> dict[str, int]:
  """Rows of each task that are not filling."""
  return {
      task: int((x['decoder_loss_weights'] > 0).any(axis=1).sum())
      for task, x in batches.items()
  }


def _table(pruned: pruning.Pruned) -> rich.table.Table:
  table = rich.table.Table(title='Loss, nats per target token')
  table.add_column('task')
  for name in ('all experts', 'pruned', 'difference'):
    table.add_column(name, justify='right')
  for task, before in pruned.before.items():
    after = pruned.after[task]
    table.add_row(
        task, f'{before:.3f}', f'{after:.3f}', f'{after - before:+.3f}'
    )
  return table
