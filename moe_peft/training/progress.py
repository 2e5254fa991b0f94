# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The progress of long work: how far it is, how fast, how long it will take."""

import time

import rich.console
import rich.progress


class Progress:
  """One live line on a terminal; elsewhere a plain line now and then."""

  def __init__(self, title: str, total: int, completed: int = 0):
    self._console = rich.console.Console(stderr=True, highlight=False)
    self._title, self._total, self._done = title, total, completed
    self._first, self._start = completed, time.monotonic()
    self._last_line = 0.0
    self._bar: rich.progress.Progress | None = None
    if self._console.is_terminal:
      self._bar = rich.progress.Progress(
          rich.progress.TextColumn('{task.description}'),
          rich.progress.BarColumn(bar_width=20),
          rich.progress.MofNCompleteColumn(),
          rich.progress.TextColumn('{task.fields[text]}'),
          rich.progress.TimeRemainingColumn(),
          console=self._console,
          transient=False,
      )
      self._task = self._bar.add_task(
          title, total=total, completed=completed, text=''
      )
      self._bar.start()

  def update(self, completed: int, text: str = '') -> None:
    """Shows how far things are, and a few figures."""
    self._done = completed
    if self._bar is not None:
      self._bar.update(self._task, completed=completed, text=text)
      return
    now = time.monotonic()
    if completed >= self._total or now - self._last_line > 10:
      self._last_line = now
      done = completed - self._first
      left = (self._total - completed) * (now - self._start) / max(done, 1)
      self._console.print(
          f'{self._title} {completed}/{self._total}  {text}  '
          f'{_duration(left)} left'
      )

  def advance(self, text: str = '') -> None:
    self.update(self._done + 1, text)

  def start_clock(self) -> None:
    """Estimates the time that is left from what is done from now on."""
    self._first, self._start = self._done, time.monotonic()

  def note(self, text: str) -> None:
    """Shows a line of its own."""
    self._console.print(text)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()


def _duration(seconds: float) -> str:
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'
