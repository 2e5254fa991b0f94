# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Functions of long rows, run for a part of the rows at a time.

Parts are made again in the backward pass, so nothing inside of them is kept:
memory of one part, for one more run of the forward pass, and the same numbers.
Rows stay whole on their devices.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import math
from typing import Any

import jax
import jax.numpy as jnp

_num_devices = contextvars.ContextVar('num_devices', default=1)


@contextlib.contextmanager
def split_over(num_devices: int) -> Iterator[None]:
  """Tells `on_a_device` over how many devices arrays are split.

  T5X enters its mesh by `with mesh:`, which `get_abstract_mesh` does not see.
  """
  token = _num_devices.set(num_devices)
  try:
    yield
  finally:
    _num_devices.reset(token)


def on_a_device(size: int) -> int:
  """How many of `size` numbers a device holds, if all mesh axes split them."""
  mesh = jax.sharding.get_abstract_mesh().shape
  return size // max(math.prod(mesh.values()), _num_devices.get())


def run(
    function: Callable[..., Any],
    length: int,
    num_parts: int,
    *arrays: tuple[jax.Array, int],
) -> Any:
  """Maps parts of arrays to parts of results, which are joined on axis 1.

  Args:
    function: Takes parts of the arrays, in their order.
    length: Size of the axis that is cut.
    num_parts: About how many parts; the last one is filled up with zeros.
    *arrays: Pairs of an array and its axis that is cut, of size `length`.
  """
  part = -(-length // min(length, num_parts))
  num_parts = -(-length // part)

  def cut(x, axis):
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, num_parts * part - length)
    shape = (*x.shape[:axis], num_parts, part, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, missing).reshape(shape), axis, 0)

  again = jax.checkpoint(lambda x: function(*x), prevent_cse=False)
  results = jax.lax.map(again, [cut(x, axis) for x, axis in arrays])

  def join(x):
    x = jnp.moveaxis(x, 0, 1)
    x = x.reshape(x.shape[0], num_parts * part, *x.shape[3:])
    return x[:, :length]

  return jax.tree.map(join, results)
