# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of runs in processes: order, failures, signals, locks."""

import errno
import os
import signal
import sys
import threading

import pytest

from moe_peft.study import processes
from tests import refusals


@pytest.fixture
def python(monkeypatch, tmp_path):
  """Runs `-c CODE` in the place of training."""
  script = tmp_path / 'python'
  # Without `-m moe_peft.train`.
  script.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} "$@"\n')
  script.chmod(0o755)
  monkeypatch.setattr(processes.sys, 'executable', str(script))
  return lambda name, code: (tmp_path / name, ['-c', code])


def test_runs_end_in_the_order_in_which_they_are_given(python):
  done = []
  commands = [python(f'run{i}', f'print({i})') for i in range(3)]
  processes.run_all(commands, 1, done.append)
  assert done == [0, 1, 2]
  assert (commands[2][0] / 'log.txt').read_text() == '2\n'


def test_a_failure_lets_what_runs_beside_it_end_and_starts_nothing(python):
  commands = [
      # A kill may have cut a character of an earlier log.
      python('bad', 'import os, sys; os.write(1, b"\\xc3"); sys.exit("why")'),
      python('good', 'import time; time.sleep(0.5)'),
      python('later', ''),
  ]
  done = []
  with refusals.refused(commands[0][0], 'The bank ended', 'status 1', 'why'):
    processes.run_all(commands, 2, done.append, what='bank')
  assert done == [1] and not commands[2][0].exists()


def test_a_signal_stops_all_runs(python):
  code = 'import time; print("up", flush=True); time.sleep(60)'
  commands = [python(f'run{i}', code) for i in range(3)]
  logs = [folder / 'log.txt' for folder, _ in commands[:2]]

  def send():
    while not all(log.exists() and log.read_text() for log in logs):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=send)
  thread.start()
  with pytest.raises(processes.Stopped):
    processes.run_all(commands, 2, lambda index: None)
  thread.join()
  assert not commands[2][0].exists()


def test_a_run_that_goes_on_is_not_started_twice(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  with (folder / 'log.txt').open('a') as stream:
    processes._lock(stream, folder, 'run')
    with refusals.refused(folder, 'Another process'):
      processes.run_all([(folder, [])], 1, lambda index: None)


def test_a_disk_without_locks_takes_runs(python, monkeypatch):
  def unknown(stream, operation):
    raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

  monkeypatch.setattr(processes.fcntl, 'flock', unknown)
  done = []
  processes.run_all([python('run', '')], 1, done.append)
  assert done == [0]
