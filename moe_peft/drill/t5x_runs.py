# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The same drill for `t5x.train`: one process that is killed, or one of two."""

import importlib.util
import json
import os
from pathlib import Path
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import rich.console

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.drill import faults
from moe_peft.drill import small_run
from moe_peft.training import bases

FILE = 't5x_trials.jsonl'
_STEPS, _PERIOD = 30, 3
# How long the other process may live; JAX looks for lost ones every 100 s.
LIMIT_SECONDS = 180.0
_SIZES = """
network.T5Config:
  emb_dim = 8
  num_heads = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 4
  mlp_dim = 16
"""
_DATA = """
DROPOUT_RATE = 0.0
USE_CACHED_TASKS = False
MIXTURE_OR_TASK_NAME = @local.register_task()
ROWSTASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 8}
BATCH_SIZE = 8
train_script.train:
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
"""
_BASE = f"""
from __gin__ import dynamic_registration
import __main__ as train_script
import optax
from t5x import models
from t5x import optimizers
from t5x import utils
from t5x.examples.t5 import network
from moe_peft.data import local
include 'gin/models/t5x_tiny_t5.gin'
include 't5x/configs/runs/pretrain.gin'
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @network.Transformer()
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
{_SIZES}
OPTIMIZER = @optimizers.OptaxWrapper()
optimizers.OptaxWrapper.optax_optimizer = @optax.sgd()
optax.sgd.learning_rate = 0.1
utils.SaveCheckpointConfig.period = 1
TRAIN_STEPS = 1
RANDOM_SEED = 7
{_DATA}
"""
_ADAPTERS = f"""
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x.examples.t5 import network
from moe_peft.data import local
include 'gin/models/t5x_tiny_t5.gin'
include 'gin/models/t5x_examples_t5.gin'
include 'gin/methods/molora.gin'
include 'gin/runs/t5x_finetune.gin'
include 'gin/runs/t5x_adapter_checkpoints.gin'
{_SIZES}
NUM_EXPERTS = 4
RANK = 2
WARMUP_STEPS = 0
TRAIN_STEPS = {_STEPS}
CHECKPOINT_PERIOD = {_PERIOD}
{_DATA}
"""
console = rich.console.Console(stderr=True, highlight=False)


def run(num_trials: int, seed: int, out: Path, work: Path) -> bool:
  """Runs trials with one process and with two in turn.

  Args:
    num_trials: How many.
    seed: Decides what happens in them.
    out: Where the records are written.
    work: Where the runs are.

  Returns:
    Whether nothing was lost, and no process outlived the other for long.

  Raises:
    errors.UserError: T5X is not there, or a run fails that is let alone.
  """
  if importlib.util.find_spec('t5x') is None:
    raise errors.UserError(
        'There is no package t5x.', '--t5x', 'Put T5X on the Python path.'
    )
  task = small_run.write_rows(work)
  for name, text in (('base', _BASE), ('adapters', _ADAPTERS)):
    (work / f'{name}.gin').write_text(text.replace('ROWS', task))
  _Runs(work, 'base', 1).whole('base')
  expected = {}
  for number in sorted({1, min(2, num_trials)}):
    runs = _Runs(work, f'reference{number}', number)
    runs.whole()
    expected[number] = runs.state()
  records = []
  out.mkdir(parents=True, exist_ok=True)
  for trial in range(num_trials):
    rng = random.Random(f'{seed}/{trial}')
    runs = _Runs(work, f'run{trial}', 1 + trial % 2)
    record = {'seed': seed, 'trial': trial, **_trial(
        runs, rng, expected[1 + trial % 2]
    )}
    records.append(record)
    console.print(str(record), markup=False)
    atomic.write(
        out / FILE, ''.join(json.dumps(record) + '\n' for record in records)
    )
  return not any(record['lost'] for record in records)


def _trial(runs: '_Runs', rng: random.Random, expected: Any) -> dict[str, Any]:
  """Kills a process, damages a checkpoint now and then, and lets it end."""
  lost, what = [], ''
  step = rng.randrange(_PERIOD, _STEPS - _PERIOD, _PERIOD)
  runs.start()
  while not runs.has_saved(step) and runs.all_run():
    time.sleep(0.005)
  time.sleep(rng.uniform(0.0, 0.3))
  killed = rng.randrange(len(runs.processes))
  runs.processes[killed].send_signal(signal.SIGKILL)
  others = runs.end()
  if None in others:
    lost.append(f'a process lives {LIMIT_SECONDS} s longer than the other one')
  saved = runs.saved()
  if len(saved) > 1 and rng.random() < 0.5:
    files = sorted(x for x in (saved[-1] / 'state').rglob('*') if x.is_file()
                   and x.stat().st_size)
    file = rng.choice(files)
    faults.flip(file, rng)
    what = f'a flipped bit in {file.relative_to(runs.folder)}'
  try:
    runs.whole()
    state = runs.state()
    lost += [name for name in expected if name not in state
             or not np.array_equal(state[name], expected[name])]
  except errors.UserError as error:
    lost.append(str(error))
  if not lost:
    shutil.rmtree(runs.folder)
  return {
      'processes': len(others), 'killed': killed, 'saved': len(saved),
      'others_lived': [None if x is None else round(x, 1) for x in others],
      'what': what, 'lost': lost,
  }


class _Runs:
  """Processes that train together, and their folder."""

  def __init__(self, work: Path, name: str, number: int):
    self._work, self.folder, self._number = work, work / name, number
    self.processes: list[subprocess.Popen] = []
    shutil.rmtree(self.folder, ignore_errors=True)

  def start(self, kind: str = 'adapters') -> None:
    """Starts all processes."""
    self.folder.mkdir(exist_ok=True)
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    together = [] if self._number == 1 else [
        '--multiprocess_gpu', f'--coordinator_address=127.0.0.1:{port}',
        f'--process_count={self._number}',
    ]
    self.processes = []
    for index in range(self._number):
      own = together and [*together, f'--process_index={index}']
      with self._log(index).open('wb') as stream:
        self.processes.append(subprocess.Popen(
            [*self._command(kind), *own], stdout=stream, stderr=stream,
            env=self._environment(), start_new_session=True,
        ))

  def _log(self, index: int) -> Path:
    return self._work / f'{self.folder.name}_{index}.log'

  def _command(self, kind: str) -> list[str]:
    base = self._work / 'base' / 'checkpoint_1'
    values = {'MODEL_DIR': str(self.folder)}
    if kind == 'adapters':
      values['INITIAL_CHECKPOINT_PATH'] = str(base)
    return [
        sys.executable, '-m', 't5x.train',
        f'--gin_file={self._work / f"{kind}.gin"}',
        f'--gin_search_paths={gin_files.resource("gin").parent}',
        *(f'--gin.{name}={value!r}' for name, value in values.items()),
    ]

  def _environment(self) -> dict[str, str]:
    package = str(gin_files.PACKAGE_DIR.parent)
    path = [package, os.environ.get('PYTHONPATH', '')]
    return {
        **os.environ, 'PYTHONPATH': os.pathsep.join(path),
        'JAX_PLATFORMS': 'cpu',
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'TF_CPP_MIN_LOG_LEVEL': '3',
    }

  def all_run(self) -> bool:
    return all(process.poll() is None for process in self.processes)

  def end(self, limit: float = LIMIT_SECONDS) -> list[float | None]:
    """Waits until all have ended.

    Returns:
      After how many seconds each has; None for those that had to be killed.
    """
    start, ended = time.monotonic(), {}
    while len(ended) < self._number and time.monotonic() < start + limit:
      for index, process in enumerate(self.processes):
        if index not in ended and process.poll() is not None:
          ended[index] = time.monotonic() - start
      time.sleep(0.05)
    for process in self.processes:
      process.kill()
      process.wait()
    return [ended.get(index) for index in range(self._number)]

  def whole(self, kind: str = 'adapters') -> None:
    """Runs to the end; errors.UserError if it fails."""
    self.start(kind)
    self.end(small_run.LIMIT_SECONDS)
    for index, process in enumerate(self.processes):
      if process.returncode:
        said = self._log(index).read_text(errors='replace')
        raise errors.UserError(
            f'T5X has ended with status {process.returncode}: {said[-500:]}',
            self._log(index),
        )

  def saved(self) -> list[Path]:
    """Whole checkpoints, the newest last."""
    names = [x.name.removeprefix('checkpoint_')
             for x in self.folder.glob('checkpoint_*')]
    steps = sorted(int(x) for x in names if x.isdigit())
    return [self.folder / f'checkpoint_{step}' for step in steps]

  def has_saved(self, step: int) -> bool:
    return (self.folder / f'checkpoint_{step}').exists()

  def state(self) -> dict[str, Any]:
    """The last state, by path."""
    folder = self.folder / f'checkpoint_{_STEPS}' / 'state'
    return trainable.flatten(bases.read_orbax(folder))
