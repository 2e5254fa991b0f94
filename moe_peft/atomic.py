# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets
import shutil

from moe_peft import errors


def write(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes a file beside its place, then renames it into place.

  A reader, a process that is killed in between, or a machine that loses power
  then, sees either the file of before or all of the new one. Processes that
  write the same file at once do not mix their texts; the last one wins.

  Args:
    path: The file; its folder must exist.
    data: What it will hold; text is written as UTF-8.

  Raises:
    OSError: The file cannot be written; nothing partial is left.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.{_unique()}.partial')
  try:
    with partial.open('wb') as file:
      file.write(data.encode() if isinstance(data, str) else data)
      file.flush()
      os.fsync(file.fileno())  # Else the name may be on the disk before it.
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def remove_partial(*folders: pathlib.Path) -> None:
  """Removes what killed processes have left of files that `write` writes.

  Only for a process that no other one writes beside, and not in folders within:
  they may be those of others.
  """
  for folder in folders:
    for partial in folder.glob(f'*.*.{"[0-9a-f]" * 8}.partial'):
      partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    path: pathlib.Path, where: str, force: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a new folder that becomes `path` if nothing goes wrong.

  Args:
    path: The folder.
    where: What the user calls it, such as `--out`.
    force: Whether what is there now may be replaced. It stays beside the new
      folder as `NAME.old`, which only a later call removes.

  Raises:
    errors.UserError: If `path` exists and is not an empty folder, unless
      `force`, or the disk refuses.
  """
  path = path.expanduser().absolute()
  taken = check_new(path, where, force)
  aside = path.with_name(f'.{path.name}.{_unique()}.part')
  try:
    aside.mkdir(parents=True)
    yield aside
    if taken:
      _move_away(path)
    elif path.exists():
      path.rmdir()
    aside.rename(path)
  except OSError as error:
    raise errors.UserError(
        f'{path} could not be written ({error.strerror or error}).',
        where=path,
    ) from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def check_new(path: pathlib.Path, where: str, force: bool = False) -> bool:
  """Whether something is in the place of a new folder that may be replaced.

  Commands ask before long work; arguments and errors are those of `new_folder`.
  """
  path = path.expanduser().absolute()
  taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
  if taken and not force:
    raise errors.UserError(
        f'{path} exists and is not an empty folder.', where=where,
        remedy='Choose another one, or give --force: it keeps what is there '
        f'as {path.name}.old.',
    )
  return taken


def _move_away(path: pathlib.Path) -> None:
  old = path.with_name(f'{path.name}.old')
  if old.is_dir():
    shutil.rmtree(old)
  path.rename(old)


def _unique() -> str:
  """A text that no other process has; in containers process ids repeat."""
  return f'{os.getpid()}.{secrets.token_hex(4)}'
