# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is done with the experts of a trained run: ablate, control, prune."""

from collections.abc import Mapping
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from moe_peft import atomic
from moe_peft.experts import ablation
from moe_peft.experts import pruning
from moe_peft.experts import routing_controls
from moe_peft.models import language_model
from moe_peft.runs import ablation_file
from moe_peft.runs import controls_file
from moe_peft.runs import run_file
from moe_peft.training import compilation
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import progress as progress_lib
from moe_peft.training import run
from moe_peft.training import scoring


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
  trained = _open(split, rows)
  _measure(trained)
  return trained.run_dir


def control_routing(split: str, rows: int | None) -> Path:
  """Writes `routing_controls.json` of the configured run, prints the scores.

  Args:
    split: Split of the rows.
    rows: Rows of each task at most; None leaves it to EVAL_EXAMPLES.

  Returns:
    The folder of the run.

  Raises:
    errors.UserError: If there is no checkpoint, split or router.
  """
  trained = _restore(split)
  setup = trained.setup
  if rows is not None:
    setup = dataclasses.replace(setup, experiment=dataclasses.replace(
        setup.experiment, eval_examples=rows
    ))
  measured = routing_controls.measure(setup, trained.params, trained.step)
  measured.write(trained.run_dir)
  rich.console.Console().print(_controls_table(measured))
  return trained.run_dir


def prune(
    keep: int, out: Path, split: str, rows: int, force: bool = False
) -> None:
  """Writes a run with fewer experts and prints the losses.

  Args:
    keep: Experts that stay at each site.
    out: Its folder; appears when it is whole.
    split: Split of the rows on which losses are measured.
    rows: Rows of each task.
    force: As in `atomic.new_folder`.

  Raises:
    errors.UserError: If the run cannot be pruned, or the folder is taken.
  """
  with atomic.new_folder(out, '--out', force) as folder:
    trained = _open(split, rows)
    # A run that cannot be pruned is refused before its experts are scored.
    routers = ablation.routers(
        trained.model, trained.params, next(iter(trained.batches.values()))
    )
    num_experts = pruning.check_routers(routers, keep)
    pruning.check_keep(num_experts, keep)
    measured = _known(trained) or _measure(trained)
    pruned = pruning.write(
        trained.setup, trained.params, trained.step, measured.scores(),
        trained.batches, keep, folder,
    )
    info = run_file.read(trained.run_dir) or run_file.RunInfo()
    pruning.summary(info, pruned, trained.run_dir).write(folder)
  rich.console.Console().print(_table(pruned))
  run.console.print(
      f'{keep} of {num_experts} experts at {len(pruned.kept)} sites; '
      f'{pruned.num_params:,} trainable parameters; written to {out}'
  )


@dataclasses.dataclass(frozen=True)
class _Opened:
  """A trained run on its devices, and held-out rows.

  Attributes:
    setup: The run.
    params: Flat parameters of the newest checkpoint.
    step: Its step.
    split: Split of the rows.
    batches: Model features by task, <int32>[rows, length]; none if the rows
      were not read.
  """

  setup: experiment_lib.Setup
  params: Mapping[str, Any]
  step: int
  split: str
  batches: ablation.Batches = dataclasses.field(default_factory=dict)

  @property
  def model(self) -> language_model.LanguageModel:
    return self.setup.experiment.model

  @property
  def run_dir(self) -> Path:
    return self.setup.experiment.run_dir

  @property
  def num_rows(self) -> dict[str, int]:
    """Rows of each task that are not filling."""
    return {
        task: int((x['decoder_loss_weights'] > 0).any(axis=1).sum())
        for task, x in self.batches.items()
    }


def _open(split: str, rows: int) -> _Opened:
  """The configured run with rows, as many as fill its devices."""
  trained = _restore(split)
  rows += -rows % trained.setup.mesh.size
  # Answer choices count as rows. The right ones must be among the rows.
  batches = scoring.make_evaluator(trained.setup).first_rows(rows)
  return dataclasses.replace(trained, batches=batches)


def _restore(split: str) -> _Opened:
  experiment = run.build(split)
  compilation.use_cache(experiment.compilation_cache_dir)
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    step = checkpointer.require_step()
    params = loop.restore_params(setup, checkpointer)
  return _Opened(setup, params, step, split)


def _known(trained: _Opened) -> ablation_file.Ablation | None:
  """What was measured before, if it is of this step and these rows."""
  known = ablation_file.read(trained.run_dir)
  wanted = trained.step, trained.split, trained.num_rows
  if known is None or known.is_of(*wanted):
    return known
  run.console.print(
      f'{ablation_file.FILE} is of step {known.step}, split {known.split!r} '
      f'and rows {dict(known.rows)}, not of step {wanted[0]}, split '
      f'{wanted[1]!r} and rows {wanted[2]}: the experts are scored anew.'
  )
  return None


def _measure(trained: _Opened) -> ablation_file.Ablation:
  """Scores the experts, and writes `ablation.json`."""
  batch = next(iter(trained.batches.values()))
  num_sites = len(ablation.routers(trained.model, trained.params, batch))
  progress = progress_lib.Progress('sites', num_sites)
  with contextlib.closing(progress):
    loss, without = ablation.leave_one_out(
        trained.model, trained.params, trained.batches, trained.setup.mesh,
        progress.advance,
    )
  measured = ablation_file.Ablation(
      tuple(trained.batches), loss, without,
      trained.step, trained.split, trained.num_rows,
  )
  measured.write(trained.run_dir)
  return measured


def _controls_table(measured: controls_file.Controls) -> rich.table.Table:
  table = rich.table.Table(
      'task', 'metric', title='Scores with the weights of experts replaced'
  )
  for name in measured.scores:
    table.add_column(name.replace('_', ' '), justify='right')
  for task, metric in measured.metrics.items():
    table.add_row(
        task, metric, *(f'{x[task]:.1f}' for x in measured.scores.values())
    )
  return table


def _table(pruned: pruning.Pruned) -> rich.table.Table:
  table = rich.table.Table('task', title='Loss, nats per target token')
  for name in ('all experts', 'pruned', 'difference'):
    table.add_column(name, justify='right')
  for task, before in pruned.before.items():
    after = pruned.after[task]
    table.add_row(
        task, f'{before:.3f}', f'{after:.3f}', f'{after - before:+.3f}'
    )
  return table
