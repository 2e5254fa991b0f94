# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A signal ends a process in one sentence, whatever the process does."""

import signal
import subprocess
import sys

import pytest

from moe_peft import signals

_BEGIN = """
import signal, sys, time
sys.argv = ['a command']
from moe_peft import signals
from moe_peft.cli import flags

signals._SECONDS = 1.0

def main(args):
  print('up', flush=True)
"""
# The bodies of commands to which a signal comes.
_SLEEPS = """
  time.sleep(60)
"""
_CLEANS_UP = """
  try:
    time.sleep(60)
  finally:
    print('clean', flush=True)
"""
_SWALLOWS = """
  while True:
    try:
      time.sleep(60)
    except BaseException:
      pass
"""
_DESTRUCTS = """
  class Slow:
    def __del__(self):
      time.sleep(1)
  while True:
    Slow()
"""
_TURNS_INTO_ANOTHER = """
  try:
    time.sleep(60)
  except KeyboardInterrupt:
    raise RuntimeError('a library')
"""
_COMPILES = """
  import ctypes
  ctypes.CDLL(None).sleep  # In C, and without a look at signals.
  ctypes.CDLL(None).usleep(0)
  end = time.time() + 60
  while time.time() < end:
    ctypes.CDLL(None).sleep(60)
"""
_IMPORTS = """
  import importlib, pathlib, tempfile
  with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, 'slow_module.py').write_text(
        'import time\\n'
        'try:\\n  time.sleep(60)\\n'
        'except BaseException:\\n  print("raised", flush=True)'
    )
    sys.path.insert(0, folder)
    importlib.import_module('slow_module')
"""
_LIVES_ON = """
  try:
    time.sleep(60)
  except KeyboardInterrupt:
    signals.handled()
  time.sleep(3)
  print('on', flush=True)
"""
_NOTES = """
  with signals.noted() as stopped:
    while not stopped:
      time.sleep(0.01)
    time.sleep(2)
  print('saved', flush=True)
  return signals.noted_status()
"""
_EVALUATES = """
  with signals.noted() as stopped:
    with stopped.interrupting():
      time.sleep(60)
    print('saved' if stopped else 'not noted', flush=True)
  return signals.noted_status()
"""


def _by_default():
  """A job in the background ignores Ctrl-C, one of nohup SIGHUP, and so would
  their children."""
  for number in signals.NUMBERS:
    signal.signal(number, signal.SIG_DFL)


def end(body, numbers, setup=None, wait=0.2):
  """Status and output of a command to which signals come."""
  with subprocess.Popen(
      [sys.executable, '-c', f'{_BEGIN}{body}\nflags.run(main)'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      preexec_fn=setup or _by_default,
  ) as process:
    try:
      assert process.stdout.readline() == 'up\n'
      for number in numbers:
        with pytest.raises(subprocess.TimeoutExpired):
          process.wait(wait)
        process.send_signal(number)
      out, err = process.communicate(timeout=30)
    finally:
      process.kill()
  return process.returncode, out, err


@pytest.mark.parametrize(
    ('body', 'out'),
    [
        (_SLEEPS, ''), (_CLEANS_UP, 'clean\n'), (_SWALLOWS, ''),
        (_DESTRUCTS, ''), (_TURNS_INTO_ANOTHER, ''), (_COMPILES, ''),
        (_IMPORTS, ''),
    ],
)
def test_a_signal_is_never_lost(body, out):
  assert end(body, [signal.SIGINT]) == (130, out, 'Interrupted.\n')


def test_a_command_may_live_on_after_ctrl_c():
  assert end(_LIVES_ON, [signal.SIGINT]) == (0, 'on\n', '')
  assert end(_LIVES_ON, [signal.SIGTERM]) == (143, '', 'Stopped by SIGTERM.\n')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_as_sigterm_does(number):
  assert end(_SLEEPS, [number]) == (
      143, '', f'Stopped by {signal.Signals(number).name}.\n'
  )


@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGINT, 130), (signal.SIGHUP, 143)]
)
def test_a_loop_saves_first(number, status):
  assert end(_NOTES, [number]) == (status, 'saved\n', '')
  assert end(_EVALUATES, [number]) == (status, 'saved\n', '')


def test_a_second_signal_does_not_wait():
  assert end(_NOTES, [signal.SIGINT, signal.SIGTERM]) == (
      143, '', 'Stopped by SIGTERM.\n'
  )


def test_what_is_ignored_stays_so():
  def nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

  status, out, err = end(
      '  time.sleep(1); print("done")', [signal.SIGHUP], nohup
  )
  assert (status, out, err) == (0, 'done\n', '')


def test_what_handled_signals_before_does_so_again():
  before = signal.getsignal(signal.SIGTERM)
  with signals.noted() as stopped:
    signal.raise_signal(signal.SIGTERM)
    assert stopped
  assert signals.noted_status() == 143
  assert signal.getsignal(signal.SIGTERM) is before
