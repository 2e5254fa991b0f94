# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

import os
import pathlib


def write(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes a file beside its place, then renames it into place.

  A reader, or a process that is killed in between, sees either the file of
  before or all of the new one. Processes that write the same file at once do
  not mix their texts; the last one wins.

  Args:
    path: The file; its folder must exist.
    data: What it will hold; text is written as UTF-8.

  Raises:
    OSError: The file cannot be written; nothing partial is left.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  try:
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
