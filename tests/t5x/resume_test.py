# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of `t5x.train` that were killed end as those that were not."""

import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from moe_peft.core import trainable
from moe_peft.training import bases
from moe_peft.training import checksums
from tests.t5x import networks
from tests.t5x import processes

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

ADAPTERS = "include 'gin/runs/t5x_adapter_checkpoints.gin'"
MORE = f'{networks.FEW_SITES}CHECKPOINT_PERIOD = 3\n'
# Experts large enough for file formats not to count.
LARGE = 'NUM_EXPERTS = 16\nRANK = 1024\n'


def read_state(checkpoint):
  """What a checkpoint of adapters holds, by path."""
  return trainable.flatten(bases.read_orbax(checkpoint / 'state'))


def check_equal(one, other):
  assert one.keys() == other.keys()
  assert any('param_states' in path for path in one)
  for path, value in one.items():
    np.testing.assert_array_equal(value, other[path], err_msg=path)


def kill_at(arguments, folder, patterns):
  """Starts a run, and kills it as soon as one of `patterns` is there."""
  process = subprocess.Popen(
      arguments,
      env=processes.environment(1),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  while process.poll() is None:
    if any(any(folder.glob(pattern)) for pattern in patterns):
      break
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL


@pytest.fixture(name='base', scope='module')
def _base(tmp_path_factory):
  return processes.write_base(tmp_path_factory.mktemp('base'))


@pytest.fixture(name='whole', scope='module')
def _whole(base, tmp_path_factory):
  """A gin file, and the folder of its run that nobody disturbed."""
  folder = tmp_path_factory.mktemp('whole')
  file = processes.write_gin(folder / 'run.gin', ADAPTERS, MORE + LARGE)
  processes.train(file, folder / 'run', base, TRAIN_STEPS=30)
  return file, folder / 'run'


def test_killed_runs_continue_bit_for_bit(base, whole, tmp_path):
  file, undisturbed = whole
  folder = tmp_path / 'killed'
  arguments = processes.command(file, folder, base, TRAIN_STEPS=30)
  # Between two checkpoints, and while one is being written.
  kill_at(arguments, folder, ['checkpoint_6'])
  kill_at(arguments, folder, ['checkpoint_15*tmp*', 'checkpoint_18'])
  left = {path.name for path in folder.glob('checkpoint_*')}
  assert 'checkpoint_6' in left and 'checkpoint_30' not in left
  # Checkpoints of T5X runs have checksums.
  saved = left - {path.name for path in folder.glob('*tmp*')}
  newest = folder / max(saved, key=lambda name: int(name.split('_')[1]))
  assert checksums.damaged_file(newest) is None
  file_of_state = next((newest / 'state').rglob('d/*'))
  content = file_of_state.read_bytes()
  file_of_state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  assert checksums.damaged_file(newest) == file_of_state
  # The one before it is used.
  processes.train(file, folder, base, TRAIN_STEPS=30)
  assert (folder / f'damaged_{newest.name.split("_")[1]}').is_dir()
  check_equal(
      read_state(undisturbed / 'checkpoint_30'),
      read_state(folder / 'checkpoint_30'),
  )


def test_checkpoints_are_as_small_as_what_is_trained(whole):
  checkpoint = whole[1] / 'checkpoint_30'
  trained = sum(x.nbytes for x in read_state(checkpoint).values())
  written = sum(
      file.stat().st_size
      for file in checkpoint.rglob('*')  # The position in the data too.
      if file.is_file()
  )
  assert trained > 5e6
  assert written < 1.1 * trained


def train_together(file, folder, base, logs, **macros):
  """Two processes of four devices each."""
  arguments = processes.command(file, folder, base, **macros)
  result = subprocess.run(
      [
          str(processes.ROOT / 'launch' / 'local.sh'),
          '--t5x',
          '--processes',
          '2',
          '--devices',
          '4',
          '--logs',
          str(logs),
          '--',
          *arguments,
      ],
      env=processes.environment(4),
      capture_output=True,
      text=True,
      check=False,
      timeout=600,
  )
  log = ''.join(path.read_text()[-2000:] for path in logs.glob('*.log'))
  assert result.returncode == 0, result.stderr[-500:] + log


def test_two_processes_train_save_and_resume_together(base, tmp_path):
  file = processes.write_gin(tmp_path / 'run.gin', ADAPTERS, MORE)
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  macros = {'NUM_MODEL_PARTITIONS': 2, 'TRAIN_STEPS': 6}
  train_together(file, whole, base, tmp_path / 'a', **macros)
  # What a run leaves that has got no further.
  shutil.copytree(whole / 'checkpoint_3', resumed / 'checkpoint_3')
  train_together(file, resumed, base, tmp_path / 'b', **macros)
  check_equal(
      read_state(whole / 'checkpoint_6'), read_state(resumed / 'checkpoint_6')
  )
  assert processes.losses(resumed) == processes.losses(whole)[3:]
