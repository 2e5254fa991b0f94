# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained model to a folder that transformers, peft or llama.cpp loads."""

from pathlib import Path

from moe_peft import atomic
from moe_peft.hf import collapse as collapse_lib
from moe_peft.hf import formats
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib


def export(
    trained: trained_lib.Trained,
    out: Path,
    file_format: str,
    force: bool = False,
    dtype: str = 'float32',
) -> None:
  """Writes a folder.

  Args:
    trained: The model.
    out: Folder to write; appears when it is whole.
    file_format: A key of `formats.FORMATS`.
    force: As in `atomic.new_folder`.
    dtype: Type of weights with the adapters in them, a key of `formats.DTYPES`.

  Raises:
    errors.UserError: If the format cannot hold the method, or not all that
      was trained.
  """
  with atomic.new_folder(out, '--out', force) as folder:
    job = formats.Job(
        folder, out, trained, trained.sites, trained.params, dtype=dtype
    )
    formats.write(job, file_format)


def export_collapsed(
    trained: trained_lib.Trained,
    out: Path,
    calibration: Path,
    file_format: str = 'peft',
    rank: int | None = None,
    per_task: bool = False,
    force: bool = False,
    dtype: str = 'float32',
) -> list[collapse_lib.Collapsed]:
  """Writes one ordinary LoRA, or one for each task in a folder of its own.

  Args:
    trained: A model with routed low-rank experts.
    out: Folder to write.
    calibration: Rows of any format that tasks have, with 'task' if `per_task`.
    file_format: A key of `formats.FORMATS`.
    rank: Rank to cut to.
    per_task: Whether gates are averaged task by task.
    force: As in `atomic.new_folder`.
    dtype: As in `export`.

  Returns:
    What was made of the experts, with the measured losses.

  Raises:
    errors.UserError: If the rows cannot be used, the experts are no LoRAs, or
      the format cannot hold all that was trained.
  """
  rows = collapse_lib.read_rows(calibration, per_task)
  measure, made = collapse_lib.measure_fn(trained), []
  with atomic.new_folder(out, '--out', force) as folder:
    for task, of_task in rows.items():
      collapsed = collapse_lib.collapse(trained, of_task, rank, measure)
      target = folder / task
      target.mkdir(exist_ok=True)
      notes = [_collapse_note(trained, collapsed, calibration.name)]
      job = formats.Job(
          target, out / task, trained, collapsed.sites, collapsed.params, notes,
          dtype,
      )
      formats.write(job, file_format)
      made.append(collapsed)
  return made


def _collapse_note(trained, collapsed, calibration) -> str:
  routed, alone, base = (
      collapsed.losses[name] for name in ('routed', 'collapsed', 'base')
  )
  verdict = '' if collapsed.worth_it else (
      f' That is more than {collapse_lib.WORTH_IT}: **not worth it**; use '
      '`--format full`.'
  )
  return (
      f'**Not equal to the trained model.** {sites_lib.methods(trained.sites)} '
      'routes token by token; here each expert has a constant weight, its mean '
      f'over {collapsed.num_examples} examples of `{calibration}`. Mean loss '
      f'of a target token on {collapsed.num_held_out} other examples of it, in '
      'nats:\n\n'
      '| routed | collapsed (this) | bare base |\n| --- | --- | --- |\n'
      f'| {routed:.4f} | {alone:.4f} | {base:.4f} |\n\n'
      f'Collapsing costs {collapsed.cost:+.4f} nats.{verdict}'
  )
