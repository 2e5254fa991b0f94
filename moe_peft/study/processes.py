# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training runs in processes, some at a time, which a signal stops together."""

import asyncio
import collections
from collections.abc import Callable, Sequence
import contextlib
import fcntl
import os
from pathlib import Path
import sys
from typing import TextIO

from moe_peft import errors
from moe_peft import signals


class Stopped(Exception):
  """A signal came; the runs have saved where they were.

  Attributes:
    number: The signal.
  """

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number


def run_all(
    commands: Sequence[tuple[Path, Sequence[str]]],
    jobs: int,
    done: Callable[[int], None],
    module: str = 'moe_peft.train',
    what: str = 'run',
) -> None:
  """Trains `jobs` runs at a time, each on its share of the cores.

  Args:
    commands: Folder of a run, for `log.txt`, and arguments of the module.
    jobs: How many run at a time.
    done: Called with the index of each one that has ended well.
    module: What Python runs.
    what: What messages call one of them.

  Raises:
    errors.UserError: If one fails; those that run beside it end first.
    Stopped: After SIGINT, SIGTERM or SIGHUP.
  """
  with signals.kept():  # asyncio has handlers of its own.
    asyncio.run(_run_all(commands, jobs, done, _Children(module, what)))


async def _run_all(commands, jobs, done, children) -> None:
  waiting = collections.deque(enumerate(commands))

  def stop(number: int) -> None:
    waiting.clear()
    children.stop(number)

  async def work(cores: set[int]) -> None:
    try:
      while waiting:
        index, (folder, arguments) = waiting.popleft()
        await children.train(folder, arguments, cores)
        done(index)
    finally:
      waiting.clear()  # After a failure, nothing new begins.

  loop = asyncio.get_running_loop()
  for number in signals.heeded():
    loop.add_signal_handler(number, stop, number)
  ended = await asyncio.gather(
      *(work(cores) for cores in _shares(jobs)), return_exceptions=True
  )
  for error in ended:
    if error is not None:
      raise error
  if children.stopped:  # Every process had ended when the signal came.
    raise Stopped(children.stopped)


class _Children:
  """The processes that are running."""

  def __init__(self, module: str, what: str):
    self._module, self._what = module, what
    self._running: set[asyncio.subprocess.Process] = set()
    self.stopped: int | None = None  # The signal.

  def stop(self, number: int) -> None:
    """Asks all processes to save and end."""
    self.stopped = number
    for child in self._running:
      with contextlib.suppress(ProcessLookupError):
        child.terminate()

  async def train(
      self, folder: Path, arguments: Sequence[str], cores: set[int]
  ) -> None:
    """Runs one process to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'log.txt'
    with log.open('a', encoding='utf-8') as stream:
      _lock(stream, folder, self._what)
      # In a session of its own, the process gets Ctrl-C from us alone.
      child = await asyncio.create_subprocess_exec(
          sys.executable, '-m', self._module, *arguments,
          stdout=stream, stderr=stream, start_new_session=True,
      )
      if cores:  # Threads that it starts later inherit them.
        with contextlib.suppress(ProcessLookupError):
          os.sched_setaffinity(child.pid, cores)
      self._running.add(child)
      if self.stopped:  # The signal came while the process was started.
        self.stop(self.stopped)
      status = await child.wait()
      self._running.discard(child)
    if status and self.stopped:
      raise Stopped(self.stopped)
    if status:
      said = log.read_text(encoding='utf-8', errors='replace')
      last = said.strip().split('\n')[-2:]
      raise errors.UserError(
          f'The {self._what} ended with status {status}: {" ".join(last)}',
          folder,
          f'See {log}, and run the study again to continue.',
      )


def _lock(stream: TextIO, folder: Path, what: str) -> None:
  """Holds a file until its last process ends, or refuses one that is held."""
  try:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise errors.UserError(
        f'Another process is at work on this {what}.', folder,
        'Wait for that process, or end it.',
    ) from error
  except OSError:
    pass  # A file system without locks.


def _shares(jobs: int) -> list[set[int]]:
  """The cores of each job; empty where there are too few or none to choose."""
  if not hasattr(os, 'sched_getaffinity'):
    return [set()] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[start::jobs]) for start in range(jobs)]
