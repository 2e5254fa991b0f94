# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run's folder belongs to one process at a time."""

import os
import signal
import subprocess
import sys

from moe_peft.runs import run_lock
from tests import refusals

_HOLDER = (
    'import pathlib, sys, time\n'
    'from moe_peft.runs import run_lock\n'
    'lock = run_lock.take(pathlib.Path(sys.argv[1]))\n'
    'print("locked", flush=True)\n'
    'time.sleep(60)\n'
)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
  folder = tmp_path / 'run'
  holder = subprocess.Popen(
      [sys.executable, '-c', _HOLDER, str(folder)], stdout=subprocess.PIPE
  )
  with holder:
    assert holder.stdout.readline() == b'locked\n'
    with refusals.refused('MODEL_DIR', folder, f'process {holder.pid} on'):
      run_lock.take(folder)
    holder.send_signal(signal.SIGKILL)
  with run_lock.take(folder):
    text = (folder / run_lock.FILE).read_text()
    assert text.startswith(f'process {os.getpid()} on')
    assert text.count('\n') == 1
    with refusals.refused('MODEL_DIR', os.getpid()):
      run_lock.take(folder)
  run_lock.take(folder).close()


def test_the_lock_of_another_user_in_a_shared_folder(tmp_path, monkeypatch):
  path = tmp_path / 'study.lock'
  path.write_text('process 1 on there\n')
  monkeypatch.setattr(os, 'access', lambda place, _: place != path)
  with run_lock.lock(path, '--results', 'is being written'):
    with refusals.refused('--results', 'process 1 on there'):
      run_lock.lock(path, '--results', 'is being written')
  assert path.read_text() == 'process 1 on there\n'


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with refusals.refused('MODEL_DIR', tmp_path / 'file'):
    run_lock.take(tmp_path / 'file' / 'run')


def test_the_folder_of_a_run_of_t5x_is_not_ours(tmp_path):
  (tmp_path / 'model-info.txt').touch()
  with refusals.refused('MODEL_DIR', 'T5X', 't5x.train'):
    run_lock.take(tmp_path)
  assert not (tmp_path / run_lock.FILE).exists()
