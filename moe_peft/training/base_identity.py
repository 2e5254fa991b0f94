# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What tells a base from another one, whatever type it is stored in."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_peft import atomic
from moe_peft.training import bases

Params = Mapping[str, Any]

# Bytes of each array that enter the fingerprint: the first and last of them.
SAMPLE_BYTES = 4096


def of(
    path: str | None, params: Params, mesh: jax.sharding.Mesh | None = None
) -> dict[str, Any]:
  """What tells a base from another one.

  Args:
    path: Where it was read from.
    params: `{path: array}`, on the host, or on the devices of `mesh`. Then all
      processes must call this, only samples are fetched, and all get the same.
    mesh: The devices.

  Returns:
    `path`, number of `parameters`, and `sha256` over the sorted names, shapes
    and types and the first and last `SAMPLE_BYTES` bytes of each array; None
    without parameters. On the host also `content`, SHA-256 over all bytes.
  """
  digest, count = hashlib.sha256(), 0
  for name, array, ends in _with_ends(params, mesh):
    count += array.size
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    for end in ends:
      digest.update(np.ascontiguousarray(end).tobytes())
  sampled = digest.hexdigest() if params else None
  found = {
      'path': path,
      'parameters': count,
      'sha256': sampled,
  }
  if mesh is None and params:
    found['content'] = _content(path, params, sampled)
  return found


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether two identities are of one base; its folder may have moved.

  Older runs do not know the `content`.
  """
  ignored = {'path'} | ({'content'} & (one.keys() ^ other.keys()))
  known = lambda x: {k: v for k, v in x.items() if k not in ignored}
  return known(one) == known(other)


def _content(path: str | None, params: Params, sampled: str) -> str:
  """SHA-256 over all bytes.

  The bytes are hashed once: the result is remembered by the path of the base,
  the sizes and times of its files and the samples.
  """
  if not path:
    return _sha256(params)
  root = bases.find(path)
  files = [root] if root.is_file() else sorted(root.rglob('*'))
  states = [(str(file.absolute()), file.stat()) for file in files]
  key = hashlib.sha256(repr([
      sampled, *((name, x.st_size, x.st_mtime_ns) for name, x in states)
  ]).encode()).hexdigest()
  cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
  remembered = cache / 'moe_peft' / 'bases' / key
  with contextlib.suppress(OSError):
    return remembered.read_text()
  content = _sha256(params)
  with contextlib.suppress(OSError):
    remembered.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(remembered, content)
  return content


def _sha256(params: Params) -> str:
  digest = hashlib.sha256()
  for name in sorted(params):  # One is in memory at a time.
    array = params[name]
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _with_ends(
    params: Params, mesh: jax.sharding.Mesh | None
) -> Iterator[tuple[str, Any, Any]]:
  """Each array with its first and last bytes, on the host, by name."""
  ends = lambda x: (_end(x, 1), _end(x, -1))
  if mesh is None:  # One is in memory at a time.
    for name in sorted(params):
      array = params[name]
      yield name, array, ends(array)
    return
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  fetch = jax.jit(
      lambda params: {name: ends(x) for name, x in params.items()},
      out_shardings=everywhere,
  )
  fetched = jax.device_get(fetch(dict(params)))
  for name, array in sorted(params.items()):
    yield name, array, fetched[name]


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
