# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, one tensor in memory at a time, and what must fit them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft.data import text_files

Shapes = Mapping[str, tuple[int, ...]]


class TensorFiles(Mapping):
  """The tensors of one or several files, each read when it is asked for.

  Attributes:
    shapes: Shape of every tensor by name.
    dtypes: Its type, as safetensors calls it ('F32', 'BF16').
    files: The file that holds it.
  """

  def __init__(self, files: Iterable[Path]):
    """Reads the headers.

    Raises:
      errors.UserError: If a file is not readable, or two hold one tensor.
    """
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, str] = {}
    self.files: dict[str, Path] = {}
    for file in files:
      try:
        with safetensors.safe_open(file, framework='numpy') as opened:
          for name in opened.keys():
            if name in self.files:
              raise errors.UserError(
                  f'{file} and {self.files[name]} both hold {name}.',
                  where=file, remedy='Fetch the folder again.',
              )
            part = opened.get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            self.dtypes[name] = part.get_dtype()
            self.files[name] = file
      except errors.UserError:
        raise
      except (safetensors.SafetensorError, OSError, ValueError) as error:
        if text_files.is_lfs_pointer(file):
          raise errors.UserError(
              f'{file} is a pointer of Git LFS to a file that is not here.',
              where=file, remedy='Run git lfs pull in its folder.',
          ) from error
        raise errors.UserError(
            f'{file} is not a readable safetensors file ({error}); it may be '
            'truncated.', where=file, remedy='Fetch or write it again.',
        ) from error

  def __getitem__(self, name: str) -> np.ndarray:
    # Opened for one tensor: pages of an open file stay in memory.
    with safetensors.safe_open(self.files[name], framework='numpy') as opened:
      return opened.get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self.files)

  def __len__(self) -> int:
    return len(self.files)


@dataclasses.dataclass(frozen=True)
class LazyArrays(Mapping):
  """Arrays that are read when they are asked for, each time anew.

  Attributes:
    shapes: Their shapes by name.
    read: Reads one.
  """

  shapes: Shapes
  read: Callable[[str], np.ndarray]

  def only(self, names: Iterable[str]) -> 'LazyArrays':
    """Those of the given names that are there."""
    shapes = {k: self.shapes[k] for k in names if k in self.shapes}
    return LazyArrays(shapes, self.read)

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self.shapes:
      raise KeyError(name)
    return self.read(name)

  def __contains__(self, name: object) -> bool:
    return name in self.shapes  # Without reading it.

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def misfits(
    given: Shapes,
    expected: Shapes,
    optional: Callable[[str], bool] = lambda name: False,
) -> str:
  """Compares the tensors of a file with those of a model.

  Args:
    given: Shapes by name of what the file holds.
    expected: Shapes by name of what the model needs.
    optional: Which names may be on one side alone.

  Returns:
    What is missing, what is not in the model and which shapes differ, in one
    line with at most three names of each; empty if everything fits.
  """
  problems = {
      'missing': [k for k in expected if k not in given and not optional(k)],
      'not in the model': [
          k for k in given if k not in expected and not optional(k)
      ],
      'shapes': [
          f'{k} is {tuple(given[k])} there and {tuple(shape)} in the model'
          for k, shape in expected.items()
          if k in given and tuple(given[k]) != tuple(shape)
      ],
  }
  parts = []
  for title, found in problems.items():
    if found:
      more = f' and {len(found) - 3} more' if len(found) > 3 else ''
      parts.append(f'{title}: {", ".join(sorted(found)[:3])}{more}')
  return '; '.join(parts)


def write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as one safetensors file.

  Raises:
    OSError: The disk refuses; the library's own error is none.
  """
  try:
    safetensors_numpy.save_file(dict(arrays), file)
  except safetensors.SafetensorError as error:
    raise OSError(f'{file.name}: {error}') from error
