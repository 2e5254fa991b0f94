# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a device computes and exchanges in a compiled training step.

FLOPs and bytes are counted in the program of the compiler; times are what the
published peaks of the chips allow.
"""

import collections
from collections.abc import Iterator, Sequence
import itertools
from typing import Any

from moe_peft.compile import collectives as collectives_lib
from moe_peft.compile import hlo
from moe_peft.compile import products as products_lib
from moe_peft.compile import topologies
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.models import stack
from moe_peft.training import memory
from moe_peft.training import step_program

Collective = collectives_lib.Collective

_LARGEST = 12  # Collectives listed one by one.


def _is_adapter(value: Collective | products_lib.Product) -> bool:
  return trainable.is_adapter(value.op_name)


def _share(part: float, whole: float) -> float:
  return part / whole if whole else 0.0


def count(
    step: step_program.StepProgram,
    program: hlo.Program,
    topology: topologies.Topology,
) -> dict[str, Any]:
  """What one device computes and exchanges in a step, and how long it must.

  Args:
    step: What was compiled.
    program: What the compiler made of it.
    topology: For which slice.
  """
  products = products_lib.find(program)
  collectives = collectives_lib.find(program)
  flops = hlo.total(products, 'flops')
  of_adapters = hlo.total(filter(_is_adapter, products), 'flops')
  return {
      'flops': {
          'per_device': flops,
          'adapters': of_adapters,
          'adapter_share': _share(of_adapters, flops),
      },
      'collectives': _collectives(collectives),
      'kernel_sized_collectives': _kernel_sized(step, collectives),
      'not_counted': {
          'loops of unknown length': program.unknown_loops,
          'custom calls': program.custom_calls(),
      },
      'roofline': topology.chip
      and _roofline(step, flops, collectives, topology.chip),
  }


def _roofline(
    step: step_program.StepProgram,
    flops: int,
    collectives: Sequence[Collective],
    chip: topologies.Chip,
) -> dict[str, Any]:
  """The least time that a step can take, from the chip's published peaks.

  Each of the three is alone and at its peak: nothing waits, all links of a chip
  send at once, parameters and optimizer state are read once and activations
  never leave the chip. A real step takes longer.
  """
  read = memory.num_bytes_of_device(
      (step.frozen, step.trained, step.optimizer)
  )
  seconds = {
      'compute': flops / chip.peak_flops,
      'exchange': hlo.total(collectives, 'traffic') / chip.ici_bandwidth,
      'memory': read / chip.hbm_bandwidth,
  }
  return {
      'seconds': seconds,
      'bound': max(seconds, key=seconds.get),
      'tokens_per_second_at_most': step.tokens / max(seconds.values()),
  }


def _collectives(collectives: Sequence[Collective]) -> dict[str, Any]:
  """Sums by kind, of adapters, and the largest ones."""
  by_kind = collections.defaultdict(list)
  for x in collectives:
    by_kind[x.kind].append(x)
  num_bytes = hlo.total(collectives, 'bytes')
  of_adapters = hlo.total(filter(_is_adapter, collectives), 'bytes')
  return {
      'bytes': num_bytes,
      'traffic': hlo.total(collectives, 'traffic'),
      'adapters': of_adapters,
      'adapter_share': _share(of_adapters, num_bytes),
      'by_kind': {
          kind: {
              'count': hlo.total(xs, 'times'),
              'bytes': hlo.total(xs, 'bytes'),
              'adapters': hlo.total(filter(_is_adapter, xs), 'bytes'),
          }
          for kind, xs in sorted(by_kind.items())
      },
      'largest': _largest(collectives),
  }


def _largest(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
  """The collectives that send most, those of equal arrays together."""
  by_array = collections.defaultdict(list)
  for x in collectives:
    key = (x.kind, x.dtype, x.shape, x.group_size, _is_adapter(x))
    by_array[key].append(x)
  largest = sorted(
      by_array.items(), key=lambda item: -hlo.total(item[1], 'bytes')
  )
  return [
      {
          'kind': kind,
          'array': f'{dtype}[{",".join(map(str, shape))}]',
          'group_size': group,
          'of': 'adapters' if adapter else 'network',
          'count': hlo.total(xs, 'times'),
          'bytes': hlo.total(xs, 'bytes'),
      }
      for (kind, dtype, shape, group, adapter), xs in largest[:_LARGEST]
  ]


def _kernel_sized(
    step: step_program.StepProgram, collectives: Sequence[Collective]
) -> dict[str, int]:
  """Collectives of the shape of a frozen kernel, by parameter, with counts.

  Such a one moves weights, or gradients of them, where only tokens should move.
  An array is told by its shape alone, so activations that happen to have that
  of a kernel are counted too. Arrays of adapters are small, whatever their
  shape.
  """
  moved = collections.Counter()
  for x in itertools.filterfalse(_is_adapter, collectives):
    moved[_shape_key(x.shape)] += x.times
  found = {}
  for path, x in step.frozen.items():
    if not path.endswith('/kernel'):
      continue
    array = x.values if isinstance(x, quantized.QuantizedArray) else x
    # A gather returns the whole; sums are of what one device holds.
    keys = {
        _shape_key(shape)
        for whole in (array.shape, array.sharding.shard_shape(array.shape))
        for shape in _shapes(whole, trainable.is_scanned(path))
    }
    times = sum(moved[key] for key in keys if len(key) > 1)
    if times:
      found[path] = times
  return found


def _shapes(
    shape: tuple[int, ...], scanned: bool
) -> Iterator[tuple[int, ...]]:
  """The shapes that a kernel may be moved in: layer by layer, heads joined."""
  yield shape
  if scanned:
    shape = shape[: stack.PARAM_SCAN_AXIS] + shape[stack.PARAM_SCAN_AXIS + 1 :]
    yield shape
  if len(shape) == 3:  # [embed, heads, kv] or [heads, kv, embed].
    yield shape[0], shape[1] * shape[2]
    yield shape[0] * shape[1], shape[2]


def _shape_key(shape: Sequence[int]) -> tuple[int, ...]:
  """Sizes in any order, for a transposed array, without those of one."""
  return tuple(sorted(size for size in shape if size > 1))
