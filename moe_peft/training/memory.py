# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What surely does not fit into memory, said before anything is made.

A host that lacks memory ends a process without a word, long after the start.
Only what every compiler must keep is counted, so what passes may fail as well.
"""

from collections.abc import Iterable
import contextlib
import math
import os
from pathlib import Path
import re
from typing import Any

import jax
from jax.extend import core

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable

# Of a container, in the two versions of control groups.
_LIMITS = ('memory.max', 'memory/memory.limit_in_bytes')
_SWAP = re.compile(r'^SwapTotal:\s+(\d+) kB', re.MULTILINE)
# Sizes of a method; any of them may be the one that is far too large.
_SIZES = ('NUM_EXPERTS', 'RANK')


def limit(device: jax.Device) -> int | None:
  """Bytes that a device says it has; None if it does not, as CPUs."""
  return (device.memory_stats() or {}).get('bytes_limit')


def of_devices(devices: Iterable[jax.Device]) -> float:
  """Bytes of all devices, of CPUs the host's; without end if one is silent."""
  devices = list(devices)
  if devices[0].platform == 'cpu':
    return of_host()
  return sum(limit(device) or math.inf for device in devices)


def of_host(
    groups: Path = Path('/sys/fs/cgroup'), meminfo: Path = Path('/proc/meminfo')
) -> int:
  """Bytes of the host's memory, or those of its container, and of all swap."""
  found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for name in _LIMITS:
    with contextlib.suppress(OSError, ValueError):  # No limit is `max`.
      found.append(int((groups / name).read_text()))
  swap = 0
  with contextlib.suppress(OSError):  # Linux alone has it.
    swap = sum(1024 * int(x) for x in _SWAP.findall(meminfo.read_text()))
  return min(found) + swap


def num_bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree, or of their shapes."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def num_bytes_of_device(tree: Any) -> int:
  """Bytes of the part that a device has of shapes with shardings."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )


def check_state(
    trained: Any, frozen: Any, opt_state: Any, devices: Iterable[jax.Device]
) -> None:
  """Checks that what lies in memory all the time can lie there.

  Args:
    trained: Shapes of the parameters that train, by path.
    frozen: Shapes of those that do not, quantized ones as they are stored.
    opt_state: Shapes of the optimizer's state.
    devices: Where they lie.

  Raises:
    errors.UserError: If the devices have less memory.
  """
  needed, there = num_bytes((trained, frozen, opt_state)), of_devices(devices)
  if needed <= there:
    return
  sizes = [x for x in _SIZES if x in gin_files.macros()]
  of_method = num_bytes(frozen) < needed / 2 and bool(sizes)
  values = ' or '.join(f'{x} = {gin_files.macro(x)}' for x in sizes)
  raise errors.UserError(
      f'{trainable.num_trained(trained):,} parameters train and '
      f"{trainable.num_params(frozen):,} do not: with the optimizer's state "
      f'they take {gib(needed)}, and there are {gib(there)} of memory.',
      where=sizes[0] if of_method else 'MODEL',
      remedy=f'Lower {values}, or adapt fewer SITES.' if of_method else
      "Take a smaller base, or BASE_DTYPE = 'bfloat16', 'int8' or 'nf4'.",
  )


def check_products(
    jaxpr: core.Jaxpr,
    rows: int,
    macro: str,
    devices: Iterable[jax.Device],
    parts: int = 1,
) -> None:
  """Checks that the largest product of matrices fits.

  Args:
    jaxpr: The program of a batch.
    rows: The rows of that batch.
    macro: What says how many there are.
    devices: Where it is computed.
    parts: In how many parts, one after the other.

  Raises:
    errors.UserError: If the devices have less memory.
  """
  largest = max(_products(jaxpr), key=num_bytes, default=None)
  if largest is None:
    return
  needed, there = num_bytes(largest) // parts, of_devices(devices)
  if needed <= there:
    return
  shape, macros = list(largest.shape), ('TASK_FEATURE_LENGTHS', *_SIZES)
  if shape[:1] == [rows]:  # Not what all rows share, such as T5's biases.
    shape[0], macros = rows // parts, (macro, *macros)
  macros = [x for x in macros if x in gin_files.macros()]
  values = ' or '.join(f'{x} = {gin_files.macro(x)}' for x in macros)
  takes = gib(math.prod(shape) * largest.dtype.itemsize)
  raise errors.UserError(
      f'One array alone, {shape}, takes {takes}, and there are {gib(there)} of '
      'memory.',
      where=next(iter(macros), macro), remedy=f'Lower {values}.',
  )


def _products(jaxpr: core.Jaxpr) -> Iterable[Any]:
  """Shapes of what sums of products make; no compiler leaves them out."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (summed, _), _ = eqn.params['dimension_numbers']
      # Outer products are made where they are read.
      if math.prod(eqn.invars[0].aval.shape[axis] for axis in summed) > 1:
        yield eqn.outvars[0].aval
    for inner in core.jaxprs_in_params(eqn.params):
      yield from _products(inner)


def gib(count: float) -> str:
  """Bytes as a user reads them."""
  return f'{count / 2**30:,.1f} GiB'
