# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What Ctrl-C, SIGTERM and SIGHUP do: a command ends in one sentence.

A signal raises `Stopped` in the main thread, so that whatever cleans up does
so. That is not enough: Python drops an exception that is raised in a
destructor, libraries catch everything here and there, and a compiler gives the
main thread back after minutes only. So a second thread hears of the signal too,
and ends the process if it is still there a few seconds later. While a module is
imported the process ends at once: code in C++ that sets one up does not expect
an exception, and has crashed of it.

A loop that can save what it has done notes signals instead (`noted`).
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import time

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What shells report of a program that Ctrl-C or SIGTERM ends. SIGHUP asks for
# the same as SIGTERM.
INTERRUPTED, TERMINATED = 130, 143
# Where Python's code of an import is from.
_IMPORT = '<frozen importlib._bootstrap>'
# How long cleaning up may take.
_SECONDS = 5.0


class Stopped(KeyboardInterrupt):
  """A signal came."""


class _Process:
  """What has happened in this process."""

  received: int | None = None  # The signal that raised `Stopped`.
  noting: 'Noted | None' = None
  noted: int | None = None  # The signal that ended the last loop.
  done = False
  handled = 0  # How often a command lived on.
  pipe: tuple[int, int] | None = None
  stderr = 2


def status(number: int) -> int:
  """The exit status of a command that a signal has ended."""
  return INTERRUPTED if number == signal.SIGINT else TERMINATED


def ended_by(error: BaseException) -> int | None:
  """The signal that has become an exception, whatever kind it is by now."""
  if _Process.received is None and isinstance(error, KeyboardInterrupt):
    return _Process.noted or signal.SIGINT
  return _Process.received


def handled() -> None:
  """Ctrl-C has ended a part of a command, which lives on."""
  if _Process.received == signal.SIGINT:
    _Process.received = None
    _Process.handled += 1


def noted_status() -> int | None:
  """The exit status of a command whose last loop noted a signal, or None."""
  return None if _Process.noted is None else status(_Process.noted)


def watch() -> None:
  """From now on signals end the process; those that are ignored stay so.

  For command lines, once, in the main thread.
  """
  _Process.received, _Process.done = None, False
  for number in heeded():
    signal.signal(number, _handle)
  if _Process.pipe is None:
    _Process.pipe = os.pipe()
    _Process.stderr = os.dup(2)  # While TensorFlow is imported, 2 is nothing.
    os.set_blocking(_Process.pipe[1], False)
    threading.Thread(target=_end_late, daemon=True).start()
    told = sys.unraisablehook
    sys.unraisablehook = lambda x: (
        None if isinstance(x.exc_value, Stopped) else told(x)
    )
  signal.set_wakeup_fd(_Process.pipe[1], warn_on_full_buffer=False)


def done() -> None:
  """The command has ended: from now on a signal only cuts what follows."""
  _Process.done = True


def leave(number: int) -> None:
  """Ends the process in one sentence, at once."""
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  name = signal.Signals(number).name
  text = 'Interrupted.' if number == signal.SIGINT else f'Stopped by {name}.'
  with contextlib.suppress(OSError):
    # Another thread may hold sys.stderr.
    os.write(_Process.stderr, f'{text}\n'.encode())
  os._exit(status(number))


def heeded() -> list[int]:
  """Signals that are not ignored, as `nohup` does."""
  return [x for x in NUMBERS if signal.getsignal(x) is not signal.SIG_IGN]


def _handle(number, frame):
  if _Process.done:
    os._exit(status(number))
  # Whoever asks twice does not want to wait.
  if _Process.received is not None or _imports(frame):
    leave(number)
  _Process.received = number
  raise Stopped


def _imports(frame) -> bool:
  """Whether a frame is part of an import."""
  while frame is not None:
    if frame.f_code.co_filename == _IMPORT:
      return True
    frame = frame.f_back
  return False


def _end_late() -> None:
  """Ends the process if a signal has not done so."""
  heard = 0
  while True:
    (number,) = os.read(_Process.pipe[0], 1)
    noting = _Process.noting
    # It may be false still: the main thread hears of the signal later.
    if number not in NUMBERS or (noting is not None and noting.waits()):
      continue
    heard += 1
    time.sleep(_SECONDS)
    # The main thread may have heard of it before this one has.
    if _Process.handled < heard:
      leave(number)


class Noted:
  """The signals of a loop that ends by itself; `number` is the first one."""

  def __init__(self):
    self.number: int | None = None
    self._interrupts, self._patient = False, True
    self._heard = False

  def __bool__(self) -> bool:
    return self.number is not None

  def waits(self) -> bool:
    """Whether the signal that has just come is only noted."""
    heard, self._heard = self._heard, True
    return self._patient and not heard

  @contextlib.contextmanager
  def interrupting(self, lost: bool = True) -> Iterator[None]:
    """Within it the first signal is noted and ends the block.

    Args:
      lost: Whether something would be lost if the process ended; if not, it
        does so where the block does not end soon.
    """
    self._interrupts, self._patient = True, lost
    try:
      yield
    except Stopped:
      if _Process.received is not None:
        raise
    finally:
      self._interrupts, self._patient = False, True

  def handle(self, number, frame) -> None:
    """Notes a signal; a second one ends the command at once."""
    if self:
      _handle(number, frame)
    self.number = number
    if self._interrupts:
      raise Stopped


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
  """Notes signals instead of ending what runs; a second one ends it at once.

  Yields:
    What is true as soon as a signal has come.
  """
  noted = _Process.noting = Noted()
  _Process.received = _Process.noted = None
  with kept():
    if threading.current_thread() is threading.main_thread():
      for number in heeded():
        signal.signal(number, noted.handle)
    try:
      yield noted
    finally:
      _Process.noting, _Process.noted = None, noted.number


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Puts back what handles signals, whatever the block makes of it."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Only the main thread may change it.
    return
  handlers = {number: signal.getsignal(number) for number in NUMBERS}
  wakeup = signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number, handler in handlers.items():
      if handler is not None:  # None: a library's own, in C.
        signal.signal(number, handler)
