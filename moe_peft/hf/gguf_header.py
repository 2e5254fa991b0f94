# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What stands before the tensors of a GGUF file.

The reader of the package `gguf` believes the numbers of a file: a wrong count
is a loop without an end. Here every number is held against the bytes that are
left before anything is made of it. The format is that of ggml's docs/gguf.md,
versions 2 and 3, little-endian.
"""

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
import struct
from typing import Any

import numpy as np

_SCALARS = {
    0: '<B', 1: '<b', 2: '<H', 3: '<h', 4: '<I', 5: '<i', 6: '<f', 7: '<?',
    10: '<Q', 11: '<q', 12: '<d',
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_SHORTEST_FIELD, _SHORTEST_TENSOR = 13, 24  # Bytes.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    shape: The outermost axis first; GGUF itself counts from the innermost.
    kind: Number of its type, as `gguf.GGMLQuantizationType`.
    offset: Offset of its first byte in the file.
  """

  shape: tuple[int, ...]
  kind: int
  offset: int


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """Reads fields and tensors by name.

  Raises:
    ValueError: If the file is not a whole GGUF file.
    OSError: If it cannot be read.
  """
  data = np.memmap(file, np.uint8, 'r') if file.stat().st_size else np.empty(0)
  reader = _Reader(memoryview(data))
  if bytes(reader.take(4)) != b'GGUF':
    raise ValueError('it does not begin with GGUF')
  if (version := reader.scalar('<I')) not in _VERSIONS:
    raise ValueError(f'its version is {version}, not 2 or 3')
  num_tensors = reader.count(_SHORTEST_TENSOR)
  num_fields = reader.count(_SHORTEST_FIELD)
  fields = _unique(
      (reader.text(), reader.value(reader.scalar('<I')))
      for _ in range(num_fields)
  )
  tensors = _unique(
      (reader.text(), reader.tensor()) for _ in range(num_tensors)
  )
  return fields, _placed(tensors, fields, reader.position)


def _unique(items) -> dict[str, Any]:
  found = {}
  for name, value in items:
    if name in found:
      raise ValueError(f'{name[:99]!r} stands twice in it')
    found[name] = value
  return found


def _placed(
    tensors: Mapping[str, Tensor], fields: Mapping[str, Any], end: int
) -> dict[str, Tensor]:
  """Tensors with offsets from the beginning of the file.

  The file's own count from the first aligned byte after the header.
  """
  alignment = fields.get('general.alignment', 32)
  if type(alignment) is not int or not 1 <= alignment <= 2**16:
    raise ValueError(f'general.alignment is {alignment!r:.50}')
  start = -(-end // alignment) * alignment
  return {
      name: dataclasses.replace(tensor, offset=start + tensor.offset)
      for name, tensor in tensors.items()
  }


class _Reader:
  """Takes values from bytes, and never more than there are."""

  def __init__(self, data: memoryview):
    self._data = data
    self.position = 0

  def take(self, size: int) -> memoryview:
    if size > len(self._data) - self.position:
      raise ValueError('it ends before its header does')
    start, self.position = self.position, self.position + size
    return self._data[start : self.position]

  def scalar(self, layout: str) -> Any:
    return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

  def count(self, size: int) -> int:
    """A number of things, each of which takes at least `size` bytes."""
    number = self.scalar('<Q')
    if number * size > len(self._data) - self.position:
      raise ValueError(f'it is too short for {number} entries')
    return number

  def text(self) -> str:
    return str(self.take(self.count(1)), 'utf-8')

  def value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self.scalar(_SCALARS[kind])
    if kind == _STRING:
      return self.text()
    if kind != _ARRAY:
      raise ValueError(f'a field has the unknown type {kind}')
    of = self.scalar('<I')
    if of == _STRING:
      return [self.text() for _ in range(self.count(8))]
    if of not in _SCALARS:
      raise ValueError(f'a list has entries of the type {of}')
    size = struct.calcsize(_SCALARS[of])
    values = self.take(self.count(size) * size)
    return [x for (x,) in struct.iter_unpack(_SCALARS[of], values)]

  def tensor(self) -> Tensor:
    rank = self.scalar('<I')
    if rank > _MAX_DIMENSIONS:
      raise ValueError(f'a tensor has {rank} axes')
    shape = tuple(self.scalar('<Q') for _ in range(rank))[::-1]
    if math.prod(shape) >= 2**48:
      raise ValueError(f'a tensor has the shape {shape}')
    return Tensor(shape, self.scalar('<I'), self.scalar('<Q'))
