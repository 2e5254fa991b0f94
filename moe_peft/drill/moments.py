# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""When a run is killed: a moment that comes, and a random time after it."""

from collections.abc import Callable
import dataclasses
import random
import signal
import time

from moe_peft.drill import small_run

# How long it takes, from one line of the reference run's log to the next.
Durations = dict[str, float]

NAMES = (
    'start-up', 'evaluation of the base', 'step', 'save', 'evaluation',
    'results', 'restore',
)
SIGNALS = (
    *[signal.SIGKILL] * 4, signal.SIGTERM, signal.SIGINT, signal.SIGHUP
)
_POLL_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class Moment:
  """When a process is killed.

  Attributes:
    name: One of `NAMES`.
    has_come: Whether it has begun.
    seconds: How long after it has begun.
  """

  name: str
  has_come: Callable[[], bool]
  seconds: float


def measure(run: small_run.SmallRun) -> Durations:
  """Runs to the end and notes how long each moment lasts.

  Raises:
    RuntimeError: The run has failed.
  """
  marks = {
      'start-up': run.is_described,
      'evaluation of the base': lambda: run.logged() > 0,
      'step': lambda: run.logged() >= small_run.EVAL_PERIOD,
      'evaluation': lambda: run.logged() > small_run.EVAL_PERIOD,
      'training': lambda: run.logged() >= small_run.STEPS,
      'results': lambda: not run.is_running(),
  }
  durations, before = {}, 0.0
  run.start()
  for name, has_ended in marks.items():
    while run.is_running() and not has_ended():
      time.sleep(_POLL_SECONDS)
    durations[name], before = run.seconds() - before, run.seconds()
  if status := run.end():
    raise RuntimeError(f'status {status}: {run.said()}')
  return durations


def draw(
    run: small_run.SmallRun, durations: Durations, rng: random.Random
) -> Moment:
  """Draws the moment at which the next process of a run is killed.

  Args:
    run: It has no process now.
    durations: As of `measure`.
    rng: Random numbers.
  """
  saved = max(run.steps_saved(), default=0)
  names = ['start-up', 'step', 'save', 'evaluation', 'results']
  names.append('restore' if saved else 'evaluation of the base')
  name = rng.choice(names)
  later = rng.randint(saved + 1, saved + max(1, (small_run.STEPS - saved) // 2))
  evaluated = -(-(saved + 1) // small_run.EVAL_PERIOD) * small_run.EVAL_PERIOD
  if name == 'evaluation' and evaluated >= small_run.STEPS:
    name = 'results'
  seconds = durations.get(name, durations['evaluation of the base'])
  has_come = {
      'start-up': lambda: True,
      'evaluation of the base': run.is_described,
      'restore': run.is_described,
      'step': lambda: run.logged() >= later,
      'save': lambda: run.is_saving(later),
      'evaluation': lambda: run.logged() >= evaluated,
      'results': lambda: run.logged() >= small_run.STEPS,
  }[name]
  if name in ('step', 'save'):
    seconds = 0.1
  return Moment(name, has_come, rng.uniform(0.0, seconds))


def wait(run: small_run.SmallRun, moment: Moment) -> bool:
  """Waits for a moment; False if the process ends before it."""
  while not moment.has_come():
    if not run.is_running() or run.seconds() > small_run.LIMIT_SECONDS:
      return False
    time.sleep(_POLL_SECONDS)
  time.sleep(moment.seconds)
  return run.is_running()
