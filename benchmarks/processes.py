# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A case that runs in a process of its own, asked by lines of JSON.

The first line says what it is, and each further one asks for a call; the
process answers each with a line. torch_peers and card_case.py are such
processes.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from typing import Any

from moe_peft import errors


class Ended(errors.UserError):
  """The process ended before it answered.

  Attributes:
    said: The line that names its exception, or the last one that it wrote, or
      its exit status.
  """

  said: str = ''


class Process:
  """The case; calling it times one call.

  Attributes:
    facts: What it said of itself at first.
    peak_mib: Memory that it has needed so far.
  """

  # What a user can do where it ends.
  remedy = ''

  def __init__(
      self,
      command: Sequence[str],
      request: Mapping[str, Any],
      environment: Mapping[str, str] | None = None,
      seconds: float | None = None,
  ):
    """Starts the process and builds the case.

    Args:
      command: What is run.
      request: `case`, its name, and what it needs.
      environment: Variables to add.
      seconds: When it is killed, if it lives as long.

    Raises:
      OSError: The command cannot be run.
      Ended: It failed.
    """
    self._case = request['case']
    # A file, since nobody reads a pipe until the end.
    self._messages = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._messages,
        env={**os.environ, **(environment or {})},
        text=True,
    )
    self._alarm = threading.Timer(seconds or 0.0, self._process.kill)
    if seconds is not None:
      self._alarm.start()
    self.peak_mib = 0.0
    self.facts = self._ask(json.dumps(request))

  def __call__(self) -> float:
    answer = self._ask('run')
    self.peak_mib = answer['peak_mib']
    return answer['seconds']

  def _ask(self, line: str) -> dict[str, Any]:
    with contextlib.suppress(BrokenPipeError):
      print(line, file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline()
    if not answer:
      self.close()
      self._messages.seek(0)
      message = self._messages.read().strip()
      ended = Ended(
          f'It ended: {message[-500:]}\n\n', self._case, self.remedy
      )
      ended.said = _exception(message) or (
          f'exit status {self._process.returncode}'
      )
      raise ended
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    self._alarm.cancel()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()


def _exception(message: str) -> str:
  """The line that names an exception: what it says may go on, with notes."""
  _, traceback, text = message.rpartition('Traceback (most recent call last):')
  if not traceback:
    return message.rpartition('\n')[2]
  lines = (x for x in text.splitlines() if x and not x.startswith(' '))
  return next(lines, '')
