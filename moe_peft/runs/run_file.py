# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`run.json`: what was run, written when a run is finished."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from moe_peft.runs import json_file

FILE = 'run.json'


@dataclasses.dataclass(frozen=True)
class Pruning:
  """What pruning did.

  Attributes:
    source: The run whose experts were pruned.
    kept: Indices of the experts that stay, by site.
    loss_before: Loss with all experts, nats per target token, by task.
    loss_after: Loss with those that stay.
  """

  source: str
  kept: Mapping[str, Any]
  loss_before: Mapping[str, float]
  loss_after: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class RunInfo:
  """A finished run. What an older or foreign file lacks is None or empty.

  Attributes:
    method: Names of the adapters' classes.
    mixture_or_task_name: What it was trained on.
    held_out_tasks: Tasks that were evaluated and not trained on.
    num_params_total: Number of parameters of the whole model.
    num_params_trainable: Number of parameters that train.
    base: The identity of the base, or its path.
    steps: Training steps.
    batch_size: Rows of a step.
    seed: Seed of everything random.
    device: Number and kind of the devices, of each process that took part.
    seconds: Time of all processes together.
    peak_memory_bytes: Memory of the process that used most.
    versions: Versions of the libraries.
    pruned: What `prune` did to the run; None for a run that was trained.
    version: Version of the file's form.
  """

  method: tuple[str, ...] = ()
  mixture_or_task_name: str | None = None
  held_out_tasks: tuple[str, ...] = ()
  num_params_total: int | None = None
  num_params_trainable: int | None = None
  base: str | Mapping[str, Any] | None = None
  steps: int | None = None
  batch_size: int | None = None
  seed: int | None = None
  device: str | None = None
  seconds: float | None = None
  peak_memory_bytes: int | None = None
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pruned: Pruning | None = None
  version: int = json_file.VERSION

  def write(self, folder: Path) -> None:
    value = dataclasses.asdict(self) | {'version': json_file.VERSION}
    if self.pruned is None:
      del value['pruned']
    else:
      value['pruned']['from'] = value['pruned'].pop('source')
    json_file.write(folder / FILE, value, indent=2)


def is_finished(folder: Path) -> bool:
  """Whether a run has ended: `run.json` is the last file that it writes."""
  return (folder / FILE).is_file()


def read(folder: Path) -> RunInfo | None:
  """The file of a run; None where there is none.

  Raises:
    errors.UserError: It is damaged.
  """
  if (fields := json_file.read(folder / FILE)) is None:
    return None
  kinds = {
      'mixture_or_task_name': str, 'num_params_total': int,
      'num_params_trainable': int, 'steps': int, 'batch_size': int,
      'seed': int, 'device': str, 'seconds': float, 'peak_memory_bytes': int,
  }
  return RunInfo(
      **{name: fields.get(name, kind, None) for name, kind in kinds.items()},
      method=fields.texts('method'),
      held_out_tasks=fields.texts('held_out_tasks'),
      base=fields.get('base', (str, dict), None),
      versions=fields.mapping('versions', str),
      pruned=_pruned(fields),
      version=fields.get('version', int, 1),
  )


def _pruned(fields: json_file.Fields) -> Pruning | None:
  if (pruned := fields.object('pruned')) is None:
    return None
  return Pruning(
      source=pruned.get('from', str),
      kept=pruned.mapping('kept', list),
      loss_before=pruned.mapping('loss_before', float),
      loss_after=pruned.mapping('loss_after', float),
  )
