# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of adapters alone against those of the whole network."""

from collections.abc import Callable, Mapping
import contextlib
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import devices
from benchmarks import experiments
from benchmarks import tables
from benchmarks import timing
from moe_peft.core import trainable
from moe_peft.training import checksums
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import train_step

ADAPTERS, FULL = 'adapters (MoLoRA)', 'full fine-tuning'
COLUMNS = (
    tables.Column('mib', 'MiB', ',.1f'),
    tables.Column('seconds', 's to save'),
    tables.Column('checksum_share', '% of it checksums', '.1f', 100),
    tables.Column('restore_seconds', 's to restore'),
    tables.Column('bytes_over_full', 'bytes / full', '.3f'),
    tables.PARAMETERS,
)
NOTE = (
    'Parameters that train, their optimizer state, and the position in the '
    'data; until all is on disk. Checksums are made in the thread that writes, '
    'after it. Medians.'
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """T5 Small, or with `quick` one layer of it."""
  rounds, bindings = (2, experiments.ONE_LAYER) if options.quick else (5, {})
  return [measure('t5_1_1_small', rounds, options, progress, bindings)]


def measure(
    model: str,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    bindings: Mapping[str, Any] | None = None,
) -> tables.Table:
  """One table.

  Args:
    model: File of gin/models/.
    rounds: Times that each case saves and restores.
    options: Options of the command line.
    progress: Told what is being done.
    bindings: Further gin bindings.
  """
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    cases = {}
    for name, method in ((ADAPTERS, 'molora'), (FULL, 'full')):
      progress(f'prepare {name}')
      experiment = experiments.build(
          model, method, (64, 32), 8,
          {**(bindings or {}), 'MODEL_DIR': str(folder / method)},
      )
      cases[name] = Saving(experiment)
      stack.callback(cases[name].close)
    saved = timing.interleave(
        {name: case.save for name, case in cases.items()}, rounds, progress
    )
    restored = timing.interleave(
        {name: case.restore for name, case in cases.items()}, rounds, progress
    )
    checked = timing.interleave(
        {name: case.check for name, case in cases.items()}, rounds, progress
    )
    rows = [
        {
            'case': name,
            **saved[name],
            'checksum_share':
                checked[name]['seconds'] / saved[name]['seconds'],
            'restore_seconds': restored[name]['seconds'],
            **case.facts(),
        }
        for name, case in cases.items()
    ]
  tables.ratios(rows, 'bytes_over_full', FULL, 'mib')
  return tables.Table(
      'checkpoint',
      f'Checkpoints: {model}{experiments.describe(bindings)}, AdamW, '
      f'{devices.describe(options.threads)}',
      COLUMNS, rows, (NOTE,),
  )


class Saving:
  """A fresh training state and the checkpoints of its run.

  Attributes:
    state: What is saved.
  """

  def __init__(self, experiment: experiment_lib.Experiment):
    """Makes the state.

    Args:
      experiment: The one that gin has just built; checkpoints go to its folder.
    """
    setup = experiments.prepare(experiment)
    self._folder = experiment.run_dir / 'checkpoints'
    self._parameters = trainable.num_params(setup.trainable)
    self._abstract = train_step.abstract_state(setup)
    state = train_step.init_state(setup)
    # Moments as they are later: zeros would be compressed to nothing.
    self.state = state.replace(
        opt_state=jax.tree.map(_filled, state.opt_state)
    )
    self._data = loop.train_data(experiment)
    self._checkpointer = loop.open_checkpoints(setup)
    self._step = 0

  def save(self) -> float:
    """Returns the seconds until the next checkpoint is on disk."""
    self._step += 1
    start = time.perf_counter()
    self._checkpointer.save(self._step, self.state, self._data)
    self._checkpointer.wait()
    return time.perf_counter() - start

  def load(self) -> train_step.TrainState:
    """Returns the state of the newest checkpoint."""
    return self._checkpointer.restore(self._step, self._abstract)

  def restore(self) -> float:
    """Returns the seconds of `load`."""
    return timing.seconds_of(self.load)

  def check(self) -> float:
    """Returns the seconds in which the newest checkpoint is hashed."""
    folder = self._folder / str(self._step)
    return timing.seconds_of(lambda: checksums.damaged_file(folder))

  def facts(self) -> dict[str, float]:
    """Returns `mib` of the newest checkpoint and the trained `parameters`."""
    files = (self._folder / str(self._step)).rglob('*')
    size = sum(file.stat().st_size for file in files if file.is_file())
    return {'mib': size / 2**20, 'parameters': self._parameters}

  def close(self) -> None:
    """Ends writing."""
    self._checkpointer.close()


def _filled(x: jax.Array) -> jax.Array:
  if x.ndim == 0:
    return x
  noise = np.random.default_rng(0).standard_normal(x.shape, np.float32)
  return jax.device_put(noise, x.sharding)
