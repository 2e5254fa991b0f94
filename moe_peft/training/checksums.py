# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A hash of every file of a checkpoint, as one more item of it.

Orbax finishes the items of a checkpoint in the order in which their handlers
are given, before the checkpoint gets its name. With `Handler` as the last one,
a checkpoint that is there has its checksums, and they cost the training loop
nothing: the files are hashed in the thread that has written them.

The hash is XXH3 with 128 bits: it finds damage, for which SHA-256 took a fifth
of the time of a save, and no hash that lies beside the files finds a forgery.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import xxhash

ITEM = 'checksums'
_STATE = 'state'  # The item that every checkpoint has.
_FILE = 'xxh3_128.json'
# Files of checksums, and what made them; the second one before version 0.3.
_HASHES = {_FILE: xxhash.xxh3_128, 'sha256.json': hashlib.sha256}
_CHUNK_BYTES = 1 << 20


class Handler(ocp.CheckpointHandler):
  """Hashes the files of the items that were finished before it."""

  def save(self, directory, args):
    """There is nothing to write before the other items are whole."""

  def restore(self, directory, args):
    """There is nothing to restore: see `damaged_file`."""

  def finalize(self, directory):
    sums = _sums(directory.parent, _HASHES[_FILE])
    (directory / _FILE).write_text(json.dumps(sums, indent=1))


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class Args(ocp.args.CheckpointArgs):
  """Asks for checksums."""


def damaged_file(checkpoint: Path) -> Path | None:
  """The first file of a checkpoint that is not as it was written.

  Args:
    checkpoint: Its folder, on a disk or in a bucket.

  Returns:
    A file that has changed, has come, is gone or cannot be read; the folder
    where that has no name. None where all are whole, and for checkpoints of
    versions that wrote no checksums.
  """
  item = checkpoint / ITEM
  if not item.exists():  # An empty folder is no checkpoint of any version.
    return None if (checkpoint / _STATE).exists() else checkpoint / _STATE
  file = next((x for x in _HASHES if (item / x).exists()), _FILE)
  try:
    then = dict(json.loads((item / file).read_text()))
  except (OSError, ValueError, TypeError, RecursionError):
    return item / file
  try:
    now = _sums(checkpoint, _HASHES[file])
  except OSError as error:  # Of reading, as of a bad sector, it has no name.
    return checkpoint / (error.filename or '')
  changed = [x for x in then.keys() | now.keys() if then.get(x) != now.get(x)]
  return checkpoint / min(changed) if changed else None


def move_aside(checkpoint: Path) -> None:
  """Makes place for a new checkpoint of the same step; deletes nothing."""
  name = f'damaged_{checkpoint.name.rpartition("_")[2]}'
  aside = next(
      path for number in itertools.count()
      if not (path := checkpoint.with_name(
          f'{name}_{number}' if number else name)).exists()
  )
  checkpoint.rename(aside)


def _sums(checkpoint: Path, new: Callable[[], Any]) -> dict[str, str]:
  """Checksums of the files of the items, by path within the checkpoint.

  Orbax's own record of times and handlers lies beside them and is no item.
  """
  files = [
      file
      for item in checkpoint.iterdir()
      if item.is_dir() and not item.name.startswith(ITEM)
      for file in _walk(item)
  ]
  names = [str(file.relative_to(checkpoint)) for file in files]
  with futures.ThreadPoolExecutor() as pool:  # Hashing frees the lock.
    sums = pool.map(lambda file: _hash(file, new()), files)
    return dict(zip(names, sums, strict=True))


def _walk(folder: Path) -> Iterator[Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _walk(path)
    else:
      yield path


def _hash(file: Path, digest: Any) -> str:
  with file.open('rb') as opened:
    while chunk := opened.read(_CHUNK_BYTES):
      digest.update(chunk)
  return digest.hexdigest()
