# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A long run: its memory, open files and threads must not grow."""

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import shutil
import signal
import time

import numpy as np
import rich.console

from moe_peft import atomic
from moe_peft import errors
from moe_peft.drill import faults
from moe_peft.drill import small_run

FILE = 'soak.json'
# Steps beyond any soak, with an evaluation and a save every few seconds.
_FLAGS = (
    '--gin.TRAIN_STEPS=2000000', '--gin.CHECKPOINT_PERIOD=200',
    '--gin.EVAL_PERIOD=500', '--gin.LOG_PERIOD=50',
)
_SECONDS = 2.0
# The first part of a run fills caches.
_WARM_UP = 1 / 3
# What may come or go from the first to the last sample, by what is measured.
LIMITS = {'memory (MB)': 32.0, 'open files': 2.0, 'threads': 2.0}

console = rich.console.Console(stderr=True, highlight=False)


def run(minutes: float, out: Path, work: Path) -> bool:
  """Trains for some minutes, and prints and writes what has grown.

  Args:
    minutes: How many.
    out: Where `soak.json` is written.
    work: Where the run is.

  Returns:
    Whether nothing has grown, and a SIGTERM at the end has saved the run.

  Raises:
    errors.UserError: The system has no /proc, or the run has failed.
  """
  if not Path('/proc/self/status').exists():
    raise errors.UserError(
        'A soak reads /proc, which this system does not have.', '--soak',
        'Run it on Linux.',
    )
  small_run.write_leaf(work)
  subject = small_run.SmallRun(work, 'soak')
  shutil.rmtree(subject.folder, ignore_errors=True)
  subject.start(*_FLAGS)
  samples = []
  while subject.seconds() < 60 * minutes and subject.is_running():
    time.sleep(_SECONDS)
    if subject.logged() and subject.is_running():
      samples.append(_sample(subject.process.pid, subject.seconds()))
  steps = subject.logged()
  status = subject.end(signal.SIGTERM)
  wrong = faults.check_words(subject)
  if status != 143:
    wrong.append(f'status {status}: {subject.said()[-300:]}')
  if len(samples) < 10:
    raise errors.UserError(
        f'There are {len(samples)} samples, too few: {subject.said()[-300:]}',
        '--soak', 'Run it for longer.',
    )
  grown = growth(samples)
  for name, (mean, more) in grown.items():
    console.print(f'{name}: {mean:.1f} on average, {more:+.1f} over the run')
    if abs(more) > LIMITS[name] and more > 0:
      wrong.append(f'{name} grow by {more:.1f}')
  record = {
      'minutes': minutes, 'steps': steps, 'samples': len(samples),
      'growth': {k: [round(x, 2) for x in v] for k, v in grown.items()},
      'wrong': wrong,
  }
  out.mkdir(parents=True, exist_ok=True)
  atomic.write(out / FILE, json.dumps(record, indent=1) + '\n')
  for text in wrong:
    console.print(f'error: {text}', markup=False)
  return not wrong


def growth(
    samples: Sequence[Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
  """Fits a line to what was measured after the warm-up.

  Args:
    samples: Each has 'seconds' and what `LIMITS` names.

  Returns:
    By name, the mean, and the rise of the line from the first of these samples
    to the last one.
  """
  kept = samples[int(len(samples) * _WARM_UP) :]
  seconds = np.array([sample['seconds'] for sample in kept])
  found = {}
  for name in LIMITS:
    values = np.array([sample[name] for sample in kept])
    slope = np.polyfit(seconds - seconds[0], values, 1)[0]
    found[name] = float(values.mean()), float(slope * np.ptp(seconds))
  return found


def _sample(pid: int, seconds: float) -> dict[str, float]:
  process = Path('/proc') / str(pid)
  # Pages of files are left out: the system drops and reads them as it likes.
  lines = (process / 'status').read_text().splitlines()
  sizes = dict(line.split(':', 1) for line in lines)
  kilobytes = (int(sizes[x].split()[0]) for x in ('RssAnon', 'VmSwap'))
  return {
      'seconds': seconds,
      'memory (MB)': sum(kilobytes) * 1024 / 1e6,
      'open files': len(os.listdir(process / 'fd')),
      'threads': len(os.listdir(process / 'task')),
  }
