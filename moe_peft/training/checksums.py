# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of every file of a checkpoint, as one more item of it.

Orbax finishes the items of a checkpoint in the order in which their handlers
are given, before the checkpoint gets its name. With `Handler` as the last one,
a checkpoint that is there has its checksums, and they cost the training loop
nothing: the files are hashed in the thread that has written them.
"""

from collections.abc import Iterator
from concurrent import futures
import hashlib
import json
from pathlib import Path

import orbax.checkpoint as ocp

ITEM = 'checksums'
_FILE = 'sha256.json'
_CHUNK_BYTES = 1 << 22


class Handler(ocp.CheckpointHandler):
  """Hashes the files of the items that were finished before it."""

  def save(self, directory, args):
    """There is nothing to write before the other items are whole."""

  def restore(self, directory, args):
    """There is nothing to restore: see `damaged_file`."""

  def finalize(self, directory):
    sums = _sums(directory.parent)
    (directory / _FILE).write_text(json.dumps(sums, indent=1))


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class Args(ocp.args.CheckpointArgs):
  """Asks for checksums."""


def damaged_file(checkpoint: Path) -> Path | None:
  """The first file of a checkpoint that is not as it was written.

  Args:
    checkpoint: Its folder, on a disk or in a bucket.

  Returns:
    A file that has changed, has come or is gone; None where all are whole, and
    for checkpoints of versions that wrote no checksums.
  """
  item = checkpoint / ITEM
  if not item.exists():
    return None
  try:
    then = dict(json.loads((item / _FILE).read_text()))
  except (OSError, ValueError, TypeError):
    return item / _FILE
  now = _sums(checkpoint)
  changed = [x for x in then.keys() | now.keys() if then.get(x) != now.get(x)]
  return checkpoint / min(changed) if changed else None


def _sums(checkpoint: Path) -> dict[str, str]:
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
    return dict(zip(names, pool.map(_sha256, files), strict=True))


def _walk(folder: Path) -> Iterator[Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _walk(path)
    else:
      yield path


def _sha256(file: Path) -> str:
  digest = hashlib.sha256()
  with file.open('rb') as opened:
    while chunk := opened.read(_CHUNK_BYTES):
      digest.update(chunk)
  return digest.hexdigest()
