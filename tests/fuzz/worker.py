# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads mutants in a process with limits, and says what became of each.

    python -m tests.fuzz.worker FOLDER READER:START:STOP...

One line of JSON an input goes to standard output. A process that dies, or
says nothing any more, has met the input after the last one that it told of.
"""

from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import random
import resource
import shutil
import sys
import time
import traceback
import warnings

MAX_SECONDS = 5.0  # Of CPU.
MAX_BYTES = 2**30  # Beside what a good input needs.
_MAX_LINES = 3
_MAX_CHARACTERS = 2000
# What no reader has a reason to do, among the events of `sys.audit`.
_FORBIDDEN = (
    'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork',
    'os.forkpty', 'pty.spawn', 'socket.connect', 'socket.bind',
    'webbrowser.open', 'pickle.find_class',
)  # fmt: skip
_CHANGES = (
    'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.chmod', 'os.chown',
    'os.symlink', 'os.link', 'os.truncate', 'shutil.rmtree', 'shutil.move',
)  # fmt: skip


class Watch:
  """Notes what the process does that a reader must not do."""

  def __init__(self, folder: Path):
    self.seen: list[str] = []
    self.active = False
    self._folder = str(folder.resolve())
    sys.addaudithook(self._hook)

  def _hook(self, event: str, args: tuple) -> None:
    if not self.active:
      return
    if event in _FORBIDDEN:
      self.seen.append(f'{event} {args!r:.100}')
    elif event == 'open' and self._writes(*args):
      self.seen.append(f'writes {args[0]!r}')
    elif event in _CHANGES and self._outside(args[0]):
      self.seen.append(f'{event} {args[0]!r}')
    elif event == 'exec' and args[0].co_filename.startswith(self._folder):
      self.seen.append(f'runs {args[0].co_filename}')

  def _writes(self, path, mode, flags) -> bool:
    del mode
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return bool(flags and flags & changes) and self._outside(path)

  def _outside(self, path) -> bool:
    if isinstance(path, int) or path is None or path == os.devnull:
      return False
    return not os.path.realpath(os.fsdecode(path)).startswith(self._folder)


def mutant(reader, name: str, number: int, folder: Path) -> list[str]:
  """Mutates one or two files of a good folder in place; returns which."""
  randomness = random.Random(f'{name}/{number}')
  files = sorted(reader.mutate)
  count = min(len(files), randomness.choice((1, 1, 1, 2)))
  chosen = randomness.sample(files, count)
  for file in chosen:
    path = folder / file
    path.write_bytes(reader.mutate[file](randomness, path.read_bytes()))
  return chosen


def inputs(
    reader, name: str, numbers: Iterator[int], root: Path, watch: Watch
) -> Iterator[dict]:
  """Reads mutants, and says what became of each."""
  good, folder, out = (root / x for x in ('good', 'input', 'out'))
  out.mkdir(exist_ok=True)
  folder.mkdir(exist_ok=True)
  around = _names(root, root.parent)
  for number in numbers:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    mutant(reader, name, number, folder)
    before = set(folder.rglob('*'))
    with _seconds() as taken:
      result = _read(reader, folder, out, watch)
    seconds = taken()
    if seconds > MAX_SECONDS:
      result = {'fault': 'slow', 'what': f'{seconds:.1f} s'}
    elif watch.seen:
      result = {'fault': 'does', 'what': '; '.join(watch.seen)}
    elif set(folder.rglob('*')) != before:
      result = {'fault': 'writes', 'what': 'a file among its inputs'}
    elif new := _names(root, root.parent) - around:
      result = {'fault': 'writes', 'what': ', '.join(new)}
      around |= new
    watch.seen.clear()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    yield {'input': number, 'seconds': round(seconds, 3), **result}


def _read(reader, folder: Path, out: Path, watch: Watch) -> dict:
  from moe_peft import errors

  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      watch.active = True
      reader.read(folder, out)
  except errors.UserError as error:
    text = str(error)
    if text.count('\n') >= _MAX_LINES or len(text) > _MAX_CHARACTERS:
      return {'fault': 'message', 'what': f'{len(text)}: {text[:200]}'}
    return {'refused': True}
  except BaseException as error:  # Panics of Rust are no Exceptions.
    frames = traceback.extract_tb(error.__traceback__)
    places = [f'{Path(x.filename).name}:{x.lineno}' for x in frames[1:]]
    what = f'{type(error).__name__}: {str(error)[:200]}'
    return {'fault': 'foreign', 'what': what, 'where': places[-8:]}
  finally:
    watch.active = False
  return {'refused': False}


def _names(*folders: Path) -> set[str]:
  return {str(x) for folder in folders for x in folder.iterdir()}


@contextlib.contextmanager
def _seconds():
  """Seconds of CPU; far above the limit the system ends the process."""
  start = time.process_time()
  hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
  resource.setrlimit(
      resource.RLIMIT_CPU, (int(start + MAX_SECONDS) + 3, hard)
  )
  yield lambda: time.process_time() - start


def _limit_memory() -> None:
  with open('/proc/self/statm', encoding='ascii') as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES,) * 2)


def main() -> None:
  """Runs as the module's docstring says."""
  root = Path(sys.argv[1]).resolve()
  jobs = [x.split(':') for x in sys.argv[2:]]
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  os.environ['HOME'] = os.environ['XDG_CACHE_HOME'] = str(root / 'home')
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  tell, sys.stdout = sys.stdout, sys.stderr
  from tests.fuzz import readers

  (root / 'home').mkdir(parents=True, exist_ok=True)
  for name in dict.fromkeys(name for name, *_ in jobs):
    _warm_up(readers.READERS[name], root / name)
  os.chdir(root)
  _limit_memory()
  watch = Watch(root)
  for name, start, stop in jobs:
    numbers = range(int(start), int(stop))
    reader = readers.READERS[name]
    for line in inputs(reader, name, numbers, root / name, watch):
      print(json.dumps({'reader': name, **line}), file=tell, flush=True)


def _warm_up(reader, root: Path) -> None:
  """Reads the good folder; what is loaded lazily is loaded then."""
  good, out = root / 'good', root / 'warm'
  root.mkdir()
  reader.write(good)
  for _ in range(2):
    out.mkdir()
    reader.read(good, out)
    shutil.rmtree(out)


if __name__ == '__main__':
  main()
