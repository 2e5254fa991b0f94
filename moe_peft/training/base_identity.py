# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The identity of a base: what tells it from another one, in any type."""

from collections.abc import Mapping
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import atomic
from moe_peft.core import trainable
from moe_peft.runs import json_file
from moe_peft.training import bases

Params = Mapping[str, Any]

# Bytes of each array that enter the fingerprint: the first and last of them.
SAMPLE_BYTES = 4096
# Of what checkpoints of T5X note of a base: the first version had a fingerprint
# of another kind.
VERSION = 2
OLDER = (
    'The checkpoint is of an older version: of its base only the number of '
    'parameters is checked.'
)
_REMEMBERED = {'parameters', 'sha256', 'content'}


def of(
    path: str | None,
    params: Params,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = None,
) -> dict[str, Any]:
  """What tells a base from another one.

  What files hold is read and hashed once: the result is remembered by their
  paths, sizes, times and inodes.

  Args:
    path: Where it was read from.
    params: `{path: array}`, on the host, or on the devices of `mesh`. Then all
      processes must call this, only samples are fetched, and all get the same.
    mesh: The devices.
    dtype: The type in which what lies on devices counts, but for adapters; by
      default each in its own.

  Returns:
    `path`, number of `parameters`, and `sha256` over the sorted names, shapes
    and types and the first and last `SAMPLE_BYTES` bytes of each array; None
    without parameters. On the host also `content`, SHA-256 over all bytes.
  """
  if mesh is not None:
    return {'path': path, **_sampled(params, mesh, dtype)}
  if not params:
    return {'path': path, 'parameters': 0, 'sha256': None}
  if not path:
    return {'path': path, **_hashed(params)}
  file = _memory(path, params)
  with contextlib.suppress(OSError, ValueError):
    known = json_file.loads(file.read_text())
    if isinstance(known, dict) and known.keys() == _REMEMBERED:
      return {'path': path, **known}
  found = _hashed(params)
  with contextlib.suppress(OSError):
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(file, json_file.dumps(found))
  return {'path': path, **found}


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether two identities are of one base; its folder may have moved.

  Older runs do not know the `content`.
  """
  ignored = {'path'} | ({'content'} & (one.keys() ^ other.keys()))
  known = lambda x: {k: v for k, v in x.items() if k not in ignored}
  return known(one) == known(other)


def is_noted(saved: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
  """Whether a base is the one that a checkpoint of T5X notes.

  Args:
    saved: The note.
    found: What `of` returns for the base on its devices.
  """
  known = 'sha256' if saved.get('version') == VERSION else 'parameters'
  return saved.get(known) == found[known]


def _memory(path: str, params: Params) -> Path:
  """The file that remembers the identity of some parameters of some files."""
  root = bases.find(path)
  files = [root] if root.is_file() else sorted(root.rglob('*'))
  states = [(str(file.absolute()), file.stat()) for file in files]
  # A model may have a part of what is there: shapes, without reading an array.
  shapes = getattr(params, 'shapes', None) or {
      name: array.shape for name, array in params.items()
  }
  key = hashlib.sha256(repr([
      sorted((name, tuple(shape)) for name, shape in shapes.items()),
      # Times of changes and inodes see what keeps size and mtime.
      *(
          (name, x.st_size, x.st_mtime_ns, x.st_ctime_ns, x.st_ino)
          for name, x in states
      ),
  ]).encode()).hexdigest()
  cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
  return cache / 'moe_peft' / 'bases' / f'{key}.json'


def _hashed(params: Params) -> dict[str, Any]:
  """Both hashes of arrays on the host, of which one is in memory at a time."""
  samples, content, count = hashlib.sha256(), hashlib.sha256(), 0
  for name in sorted(params):
    array = params[name]
    count += array.size
    head = _head(name, array.shape, array.dtype)
    for digest in (samples, content):
      digest.update(head)
    for side in (1, -1):
      samples.update(np.ascontiguousarray(_end(array, side)).tobytes())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return {
      'parameters': count,
      'sha256': samples.hexdigest(),
      'content': content.hexdigest(),
  }


def _sampled(
    params: Params, mesh: jax.sharding.Mesh, dtype: Any
) -> dict[str, Any]:
  """The hash of samples of arrays on devices."""
  types = {
      name: x.dtype
      if dtype is None or trainable.is_adapter(name)
      else jnp.dtype(dtype)
      for name, x in params.items()
  }
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def ends(params):
    typed = {name: x.astype(types[name]) for name, x in params.items()}
    return {name: (_end(x, 1), _end(x, -1)) for name, x in typed.items()}

  fetched = jax.device_get(
      jax.jit(ends, out_shardings=everywhere)(dict(params))
  )
  samples = hashlib.sha256()
  for name, array in sorted(params.items()):
    samples.update(_head(name, array.shape, types[name]))
    for end in fetched[name]:
      samples.update(np.ascontiguousarray(end).tobytes())
  return {
      'parameters': sum(array.size for array in params.values()),
      'sha256': samples.hexdigest() if params else None,
  }


def _head(name: str, shape: tuple[int, ...], dtype: Any) -> bytes:
  return f'{name} {shape} {dtype}\n'.encode()


def _end(x: Any, side: int) -> Any:
  """The first (side 1) or last (-1) `SAMPLE_BYTES` bytes of an array.

  Only a few rows are flattened, since a whole array may be sharded.
  """
  count = SAMPLE_BYTES // x.dtype.itemsize
  if x.size <= count:
    return x.reshape(-1)
  rows = -(-count // (x.size // x.shape[0]))
  part = x[:rows] if side > 0 else x[-rows:]
  if part.shape != x.shape and rows == 1:
    return _end(part[0], side)
  part = part.reshape(-1)
  return part[:count] if side > 0 else part[-count:]
