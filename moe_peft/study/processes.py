# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, some at a time, stopped together."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import fcntl
import itertools
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
from typing import TextIO

from moe_peft import errors


class Stopped(Exception):
  """A signal came; the runs have saved where they were."""


def run_all(
    commands: Sequence[tuple[Path, Sequence[str]]],
    jobs: int,
    done: Callable[[int], None],
) -> None:
  """Runs command lines, `jobs` at a time, each on its share of the cores.

  Args:
    commands: Folder of a run, for `log.txt`, and arguments of
      `python -m moe_peft.train`.
    jobs: How many run at a time.
    done: Called with the index of each one that has ended well.

  Raises:
    errors.UserError: If one fails; those that run beside it end first.
    Stopped: After SIGINT, SIGTERM or SIGHUP.
  """
  children = _Children()
  cores = itertools.cycle(_shares(jobs))
  with futures.ThreadPoolExecutor(
      jobs, initializer=lambda: _use(next(cores))
  ) as pool, children.stopped_by_signals():
    waiting = {
        pool.submit(children.run, folder, arguments): index
        for index, (folder, arguments) in enumerate(commands)
    }
    try:
      for future in futures.as_completed(waiting):
        future.result()
        done(waiting[future])
    finally:
      pool.shutdown(cancel_futures=True)


class _Children:
  """The processes that are running."""

  def __init__(self):
    # The handler of signals may interrupt its own holder.
    self._lock = threading.RLock()
    self._running: set[subprocess.Popen] = set()
    self._stopped = False

  def run(self, folder: Path, arguments: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'log.txt'
    with log.open('a', encoding='utf-8') as stream:
      _lock_or_refuse(stream, folder)
      with self._lock:
        if self._stopped:
          raise Stopped
        # A session of its own: Ctrl-C reaches it through us, once.
        child = subprocess.Popen(
            [sys.executable, '-m', 'moe_peft.train', *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._running.add(child)
      status = child.wait()
    with self._lock:
      self._running.discard(child)
      if self._stopped:
        raise Stopped
    if status:
      last = log.read_text(encoding='utf-8').strip().splitlines()[-2:]
      raise errors.UserError(
          f'{folder} ended with status {status}: '
          f'{" ".join(last)} See {log}; run the study again to continue.'
      )

  @contextlib.contextmanager
  def stopped_by_signals(self) -> Iterator[None]:
    """Passes a signal on to all processes, which save and end."""

    def stop(number, frame):
      with self._lock:  # A process that is being started is among them.
        self._stopped = True
        for child in self._running:
          child.terminate()

    previous = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
      yield
    finally:
      for number, old in previous.items():
        signal.signal(number, old)


def _lock_or_refuse(stream: TextIO, folder: Path) -> None:
  """Holds a file while a run goes on; the system lets go of it with the run."""
  try:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    raise errors.UserError(
        f'{folder} is being trained by another process. Wait for it, or end it.'
    ) from error


def _shares(jobs: int) -> list[set[int]]:
  """The cores of each job; empty where there are too few or none to choose."""
  if not hasattr(os, 'sched_getaffinity'):
    return [set()]
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[start::jobs]) for start in range(jobs)]


def _use(cores: set[int]) -> None:
  """Limits this thread, and the processes that it starts, to some cores."""
  if cores:
    os.sched_setaffinity(0, cores)
