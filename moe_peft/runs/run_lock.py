# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`train.lock`: one process at a time trains into a folder.

So it is with the records of a study, in `study.lock`. The lock is the operating
system's: it ends with its process, however that ends, so none is ever stale,
and NFS carries it to other hosts. The text of the file only says who has it.
"""

import contextlib
import fcntl
import os
from pathlib import Path
import socket
from typing import IO

from moe_peft import errors

FILE = 'train.lock'
_OF_T5X = 'model-info.txt'  # Which each of its runs writes.


def take(folder: Path) -> IO[str]:
  """Locks a run's folder, which is made where it is missing.

  Returns:
    An open file; closing it frees the folder.

  Raises:
    errors.UserError: If another process has it, if it cannot be written, or if
      it holds a run of T5X.
  """
  _check_engine(folder)
  return lock(folder / FILE, 'MODEL_DIR', 'is being trained')


def lock(path: Path, where: str, what: str) -> IO[str]:
  """Locks a file, whose folder is made where it is missing.

  Args:
    path: The file.
    where: What the user calls its folder, such as MODEL_DIR.
    what: What the process that has it does with the folder, for messages.

  Returns:
    The open file; closing it unlocks it.

  Raises:
    errors.UserError: If another process has it, or if it cannot be written.
  """
  folder = path.parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
    can_write = lambda place: os.access(place, os.W_OK)
    # In a folder that several users write the file may be that of another one.
    theirs = path.exists() and can_write(folder) and not can_write(path)
    file = path.open('r' if theirs else 'a+', encoding='utf-8')
  except OSError as error:
    raise errors.UserError(
        f'{folder} cannot be written: {error.strerror}.',
        where=where,
        remedy='Choose another folder.',
    ) from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    with file:
      file.seek(0)
      owner = file.read(200).strip() or 'another process'
    raise errors.UserError(
        f'{folder} {what} by {owner}.',
        where=where,
        remedy='Wait for it or stop it, or choose another folder.',
    ) from error
  except OSError:
    return file  # A file system without locks.
  # The lock holds without it, on a full disk for example.
  with contextlib.suppress(OSError):
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
  return file


def _check_engine(folder: Path) -> None:
  """Raises errors.UserError for the folder of a run of T5X."""
  if (folder / _OF_T5X).exists():
    raise errors.UserError(
        f'{folder} holds a run of T5X.',
        where='MODEL_DIR',
        remedy='Go on with python -m t5x.train, or choose another folder.',
    )
