# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What else happens to a run, before its next process is started.

Each fault returns what it has done, in words, and what was lost by it: a list
of sentences that should be empty.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import time

from moe_peft.drill import outcome
from moe_peft.drill import small_run

Fault = Callable[[small_run.SmallRun, random.Random], tuple[str, list[str]]]

_YEARS = 10 * 365 * 86400


def check_words(run: small_run.SmallRun) -> list[str]:
  """What is wrong with what a process has said: no more than one error."""
  said, found = run.said(), []
  if 'Traceback' in said or 'Fatal Python' in said:
    found.append('a stack trace: ' + said[-300:])
  if len(re.findall('^error: ', said, re.M)) > 1:
    found.append('two errors: ' + said[-300:])
  return found


def nothing(run, rng):
  """No fault."""
  del run, rng
  return '', []


def flip(file: Path, rng: random.Random) -> None:
  """Flips a bit."""
  content = bytearray(file.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


def _tear(file: Path, rng: random.Random) -> None:
  os.truncate(file, rng.randrange(file.stat().st_size))


def _remove(file: Path, rng: random.Random) -> None:
  del rng
  file.unlink()


def damaged(damage, run, rng):
  """Damages a file of the newest checkpoint.

  If there is no other one, the run must be refused, naming the file, until a
  copy is put back.
  """
  saved = run.steps_saved()
  if not saved:
    return '', []
  newest = run.folder / 'checkpoints' / str(saved[0])
  items = [x for x in newest.iterdir() if x.is_dir()]
  files = sorted(
      file for item in items for file in item.rglob('*')
      if file.is_file() and file.stat().st_size
  )
  file = rng.choice(files)
  before = file.read_bytes()
  damage(file, rng)
  name = str(file.relative_to(run.folder))
  if len(saved) > 1:
    return name, []
  lost = _refused(run, str(file))
  file.write_bytes(before)
  return f'{name}, the only checkpoint', lost


def _refused(run, *names: str) -> list[str]:
  """Starts a process that must end with status 2 and one error."""
  run.start()
  status = run.end()
  lost = check_words(run)
  if status != 2 or not all(name in run.said() for name in names):
    lost.append(f'status {status} and not 2: {run.said()[-300:]}')
  return lost


def clock(years: int, run, rng):
  """The times of all files jump."""
  del rng
  then = time.time() + years * _YEARS
  for path in [run.folder, *run.folder.rglob('*')]:
    with contextlib.suppress(FileNotFoundError):
      os.utime(path, (then, then))
  return f'{10 * years:+d} years', []


def full_disk(run, rng):
  """A process runs on a disk on which little is free."""
  spare = rng.randrange(4096, 400_000)
  with _little_space(run.folder, spare) as limit:
    run.start(file_bytes=limit)
    status = run.end()
    lost = check_words(run)
    if status not in (0, 2) or (status == 2) != ('error: ' in run.said()):
      lost.append(f'status {status}: {run.said()[-300:]}')
  how = 'for a file' if limit else 'on a tmpfs'
  return f'{spare} bytes {how}, status {status}', lost


@contextlib.contextmanager
def _little_space(folder: Path, spare: int) -> Iterator[int | None]:
  """Puts a folder on a tmpfs with `spare` bytes free.

  Yields:
    None, or, where that cannot be done, a limit for each file in its place.
  """
  folder.mkdir(exist_ok=True)
  used = sum(
      -(-x.stat().st_size // 4096) * 4096 + 4096 for x in folder.rglob('*')
  )
  aside = folder.with_name(f'{folder.name}.aside')
  shutil.copytree(folder, aside)
  if not _mount('-t', 'tmpfs', '-o', f'size={used + spare}', 'tmpfs', folder):
    shutil.rmtree(aside)
    yield spare
    return
  try:
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    yield None
    shutil.rmtree(aside)
    shutil.copytree(folder, aside)
  finally:
    subprocess.run(['umount', folder], check=True)
  shutil.rmtree(folder)
  aside.rename(folder)


def _mount(*arguments) -> bool:
  """Whether something could be mounted; only root may."""
  return os.geteuid() == 0 and not subprocess.run(
      ['mount', *map(str, arguments)], check=False, capture_output=True
  ).returncode


def read_only(run, rng):
  """A process cannot write into the folder; nothing may change."""
  del rng
  run.folder.mkdir(exist_ok=True)
  before = outcome.hashes(run.folder)
  mounted = _mount('--bind', run.folder, run.folder)
  if mounted:
    mounted = _mount('-o', 'remount,bind,ro', run.folder) or (
        subprocess.run(['umount', run.folder], check=True) and False
    )
  elif os.geteuid() == 0:
    return 'not possible here', []
  try:
    if not mounted:
      run.folder.chmod(0o555)
    lost = _refused(run, str(run.folder))
  finally:
    if mounted:
      subprocess.run(['umount', run.folder], check=True)
    run.folder.chmod(0o755)
  if outcome.hashes(run.folder) != before:
    lost.append('files have changed')
  return 'read-only mount' if mounted else 'no permission', lost


def two_starters(run, rng):
  """Two processes start at once: one is refused, and the other one goes on."""
  other = small_run.SmallRun(run.folder.parent, run.folder.name)
  run.start()
  time.sleep(rng.uniform(0.0, 0.5))
  other.start(log=f'{run.folder.name}_other.log')
  while run.is_running() and other.is_running():
    time.sleep(0.01)
  refused, going = (run, other) if other.is_running() else (other, run)
  status, lost = refused.end(), check_words(refused)
  if status != 2 or f'process {going.process.pid} on' not in refused.said():
    lost.append(f'status {status} and not 2: {refused.said()[-300:]}')
  time.sleep(rng.uniform(0.0, 2.0))
  going.end(signal.SIGKILL)
  return 'the second was refused', lost + check_words(going)


FAULTS: dict[str, Fault] = {
    'nothing': nothing,
    'flipped bit': functools.partial(damaged, flip),
    'torn file': functools.partial(damaged, _tear),
    'missing file': functools.partial(damaged, _remove),
    'full disk': full_disk,
    'read-only folder': read_only,
    'two starters': two_starters,
    'clock ahead': functools.partial(clock, 1),
    'clock back': functools.partial(clock, -1),
}

DAMAGE = ('flipped bit', 'torn file', 'missing file')
