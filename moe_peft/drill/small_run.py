# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run that takes seconds, as a process that can be hurt."""

import contextlib
import json
import os
from pathlib import Path
import subprocess
import sys
import time

from moe_peft.runs import metrics_files

STEPS, EVAL_PERIOD = 40, 15
# What a process begins with: `nohup drill` ignores signals.
_LAUNCH = """
import os, resource, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_DFL)
if sys.argv[1]:
  resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv[1])] * 2)
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""
# Longer than any step of a drill takes on a machine that is busy.
LIMIT_SECONDS = 600.0

# Periods that do not divide each other; dropout, so that random numbers count.
_LEAF = f"""
from __gin__ import dynamic_registration

from moe_peft.data import local
from moe_peft.models import t5

include 'gin/models/tiny_t5.gin'
include 'gin/methods/molora.gin'
include 'gin/runs/finetune.gin'

t5.T5Config:
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
DROPOUT_RATE = 0.1
SITES = '.*/(query|wo)'
NUM_EXPERTS = 4
RANK = 2

ROWS
MIXTURE_OR_TASK_NAME = @local.register_task()
TASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 8}}
INITIAL_CHECKPOINT_PATH = None
TRAIN_STEPS = {STEPS}
WARMUP_STEPS = 2
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
LOG_PERIOD = 3
CHECKPOINT_PERIOD = 4
EVAL_PERIOD = {EVAL_PERIOD}
"""


def write_rows(folder: Path) -> str:
  """Writes a small task; returns the gin bindings that register it."""
  lines = ["local.register_task.name = 'drill_sums'"]
  for split, first, last in (('train', 0, 64), ('validation', 64, 72)):
    file = folder / f'{split}.jsonl'
    file.write_text(''.join(
        json.dumps({'inputs': f'{i} plus {i % 7}', 'targets': f'{i + i % 7}'})
        + '\n'
        for i in range(first, last)
    ))
    lines.append(f'local.register_task.{split} = {str(file)!r}')
  return '\n'.join(lines) + '\n'


def write_leaf(folder: Path) -> None:
  """Writes the gin file of the run, and its data."""
  text = _LEAF.replace('ROWS', write_rows(folder))
  (folder / 'drill.gin').write_text(text)


class SmallRun:
  """A run and the process that works on it."""

  def __init__(self, work: Path, name: str):
    """Takes a folder that `write_leaf` has written to.

    Args:
      work: The folder.
      name: Of the run in it.
    """
    self._work = work
    self.folder = work / name
    self.process: subprocess.Popen | None = None
    self._log = work / f'{name}.log'
    self._started = 0.0

  def start(
      self, *flags: str, log: str = '', file_bytes: int | None = None
  ) -> None:
    """Starts a process, or the next one.

    Args:
      *flags: More of them.
      log: Its own name for the file of what it says.
      file_bytes: No file may grow beyond this size.
    """
    if log:
      self._log = self._work / log
    self._started = time.monotonic()
    with self._log.open('wb') as stream:
      self.process = subprocess.Popen(
          [
              sys.executable, '-c', _LAUNCH, str(file_bytes or ''),
              sys.executable, '-m', 'moe_peft.train',
              f'--gin_file={self._work / "drill.gin"}',
              f'--gin.MODEL_DIR={str(self.folder)!r}', *flags,
          ],
          stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
          env=self._environment(), start_new_session=True,
      )

  def _environment(self) -> dict[str, str]:
    """Programs are kept between processes, in the work folder."""
    return {
        'TF_CPP_MIN_LOG_LEVEL': '3',
        **os.environ,
        'XDG_CACHE_HOME': str(self._work / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }

  def seconds(self) -> float:
    """Since the process was started."""
    return time.monotonic() - self._started

  def said(self) -> str:
    """What the process has written so far."""
    return self._log.read_text(encoding='utf-8', errors='replace')

  def is_running(self) -> bool:
    return self.process is not None and self.process.poll() is None

  def end(self, number: int | None = None) -> int | None:
    """Sends a signal, if one is given, and waits for the end.

    Returns:
      Its status, negative for a signal as of `subprocess`; None if it has not
      ended within `LIMIT_SECONDS` and had to be killed.
    """
    if number is not None:
      with contextlib.suppress(ProcessLookupError):
        self.process.send_signal(number)
    try:
      return self.process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
      return None
    finally:
      self.process.kill()
      self.process.wait()

  def steps_saved(self) -> list[int]:
    """Steps of the checkpoints, newest first."""
    folder = self.folder / 'checkpoints'
    names = [x.name for x in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(x) for x in names if x.isdigit()), reverse=True)

  def is_saving(self, step: int) -> bool:
    """Whether a checkpoint of `step` or later is being written."""
    folder = self.folder / 'checkpoints'
    names = [x.name for x in folder.iterdir()] if folder.is_dir() else []
    return any(
        int(x.partition('.')[0]) >= step
        for x in names if 'tmp' in x and x.partition('.')[0].isdigit()
    )

  def logged(self) -> int:
    """The last step that has a row."""
    file = self.folder / metrics_files.TRAIN
    if not file.is_file():
      return 0
    steps = [row['step'] for row in metrics_files.read_lines(file)[0]]
    return max(steps, default=0)

  def is_described(self) -> bool:
    """Whether everything is built, and evaluating or restoring begins."""
    return 'parameters train' in self.said()

  def is_finished(self) -> bool:
    return (self.folder / 'run.json').is_file()
