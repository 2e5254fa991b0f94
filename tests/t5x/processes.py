# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs `python -m t5x.train` in processes of its own."""

import os
from pathlib import Path
import subprocess
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from moe_peft import gin_files
from moe_peft.hf import import_base
from tests.hf import conftest as hf_models
from tests.t5x import networks

ROOT = gin_files.resource('gin').parent
_DATA = """
MIXTURE_OR_TASK_NAME = 'past_tense'
TASK_FEATURE_LENGTHS = {'inputs': 24, 'targets': 16}
BATCH_SIZE = 8
DROPOUT_RATE = 0.0
USE_CACHED_TASKS = False
train_script.train:
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
  stats_period = 1
"""


def write_base(folder: Path) -> str:
  """Writes a base for networks.NETWORKS['examples.t5'], without T5X."""
  config = {
      **hf_models.SMALL,
      'vocab_size': 384,
      'd_model': 8,
      'd_kv': 4,
      'd_ff': 16,
      'num_heads': 8,
      'num_layers': 1,
      'num_decoder_layers': 1,
  }
  hf_models.write_model(folder / 'hf', config, hf_models.random_tensors(config))
  import_base.import_base(folder / 'hf', folder / 'base')
  return str(folder / 'base' / 'checkpoint_0')


def write_gin(file: Path, includes: str = '', more: str = '') -> Path:
  """Writes the experiment: adapters on examples.t5, one word task."""
  file.write_text(
      networks.adapted(
          'molora',
          imports='import __main__ as train_script',
          includes=includes,
          more=_DATA + 'NUM_EXPERTS = 4\nRANK = 2\n' + more,
      )
  )
  return file


def command(gin_file: Path, model_dir: Path, base: str, **macros) -> list[str]:
  """The command line of a training run."""
  values = {
      'MODEL_DIR': str(model_dir), 'INITIAL_CHECKPOINT_PATH': base, **macros
  }
  return [
      sys.executable,
      '-m',
      't5x.train',
      f'--gin_file={gin_file}',
      f'--gin_search_paths={ROOT}',
      *(f'--gin.{name}={value!r}' for name, value in values.items()),
  ]


def environment(num_devices: int) -> dict[str, str]:
  """The environment with so many host devices."""
  devices = f'--xla_force_host_platform_device_count={num_devices}'
  flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}"  # The last one counts.
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  return {**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': path,
          'JAX_PLATFORMS': 'cpu'}


def train(gin_file, model_dir, base, num_devices=1, **macros) -> None:
  """Trains to the end.

  Raises:
    AssertionError: If the process fails; holds the end of its output.
  """
  result = subprocess.run(
      command(gin_file, model_dir, base, **macros),
      env=environment(num_devices),
      capture_output=True,
      text=True,
      check=False,
      timeout=600,
  )
  assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


def losses(model_dir: Path) -> list[float]:
  """The loss of each step, from the TensorBoard files of a run."""
  events = event_accumulator.EventAccumulator(str(model_dir / 'train'))
  events.Reload()
  tensors = events.Tensors('loss')
  return [
      float(tensor_util.make_ndarray(e.tensor_proto))
      for e in sorted(tensors, key=lambda event: event.step)
  ]
