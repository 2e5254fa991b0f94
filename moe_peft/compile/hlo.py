# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a compiled program computes and sends, read from its HLO.

XLA's own cost analysis counts the body of a loop once, and a scanned network is
one loop. Here every instruction is counted as often as a step runs it.
"""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import math
import re
from typing import Any

import numpy as np

# Collectives and how many times its array a ring of n devices sends per device.
_TRAFFIC = {
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: (n - 1) / n,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-broadcast': lambda n: 1,
    'collective-permute': lambda n: 1,
}

# Instructions that hand on what another one has computed.
_TRANSPARENT = ('get-tuple-element', 'bitcast', 'copy', 'copy-done', 'tuple')


@dataclasses.dataclass(frozen=True)
class Product:
  """Multiplications of one instruction, a dot or a convolution.

  Attributes:
    flops: Of all its runs in a step.
    op_name: Where the network asked for it, `jit(step)/.../query/dot_general`.
  """

  flops: int
  op_name: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange.

  Attributes:
    kind: 'all-reduce' and so on.
    shape: Of the whole array: what an all-gather returns, what a
      reduce-scatter takes.
    dtype: 'bf16' and so on.
    bytes: Of that array, times its runs in a step.
    times: Runs in a step.
    traffic: Bytes that a device sends in a step if the group is a ring.
    group_size: Devices that exchange it with one another.
    op_name: Where the network made the array.
  """

  kind: str
  shape: tuple[int, ...]
  dtype: str
  bytes: int
  times: int
  traffic: float
  group_size: int
  op_name: str


@dataclasses.dataclass(frozen=True)
class _Run:
  """An instruction in its computation and how often a step runs it."""

  times: int
  computation: Any
  instruction: Any


class Program:
  """The optimized HLO of a compiled function.

  All branches of a conditional are counted, of which a step runs one: with
  conditionals the sums are upper bounds.

  Attributes:
    unknown_loops: Names of loops whose trip count is not a constant; they are
      counted as one pass.
  """

  def __init__(self, serialized: bytes):
    """Reads a serialized `HloModuleProto`."""
    # TensorFlow, which every command needs for its data, brings the format.
    from tensorflow.compiler.xla.service import hlo_pb2

    self._module = hlo_pb2.HloModuleProto.FromString(serialized)
    self._computations = {c.id: c for c in self._module.computations}
    self._by_id = {
        c.id: {i.id: i for i in c.instructions}
        for c in self._module.computations
    }
    self.unknown_loops: list[str] = []
    self._runs = list(self._walk(self._module.entry_computation_id, 1))

  def products(self) -> list[Product]:
    """All dots and convolutions (which is what TPUs make of dots)."""
    return [
        Product(run.times * flops, run.instruction.metadata.op_name)
        for run in self._runs
        if (flops := self._flops(run))
    ]

  def custom_calls(self) -> dict[str, int]:
    """Targets of custom calls, whose multiplications nobody can see."""
    return dict(collections.Counter(
        run.instruction.custom_call_target
        for run in self._runs
        if run.instruction.opcode == 'custom-call'
    ))

  def collectives(self) -> list[Collective]:
    """All arrays that devices exchange; combined ones are taken apart."""
    return [
        collective
        for run in self._runs
        if run.instruction.opcode.removesuffix('-start') in _TRAFFIC
        for collective in self._exchanged(run)
    ]

  def _walk(self, computation_id: int, times: int) -> Iterator[_Run]:
    computation = self._computations[computation_id]
    for instruction in computation.instructions:
      yield _Run(times, computation, instruction)
      called = instruction.called_computation_ids
      if instruction.opcode == 'while':
        trips = self._trip_count(instruction, self._by_id[computation_id])
        yield from self._walk(called[0], times * trips)
      elif instruction.opcode in (
          'fusion', 'call', 'conditional', 'async-start', 'custom-call'
      ):
        for inner in called:
          yield from self._walk(inner, times)

  def _trip_count(self, loop: Any, instructions: dict[int, Any]) -> int:
    """Trips of a loop that counts up by one, as JAX's do."""
    known = re.search(
        r'"known_trip_count":\s*\{"n":\s*"(\d+)"', str(loop.backend_config)
    )
    if known:
      return int(known[1])
    # TPU programs do not say it; the condition compares an element of the
    # loop's tuple with a constant, and a constant is what it starts from.
    condition = [
        run.instruction for run in self._walk(loop.called_computation_ids[1], 1)
    ]
    of = lambda opcode: [i for i in condition if i.opcode == opcode]
    counters = {i.tuple_index for i in of('get-tuple-element')}
    less = [i.comparison_direction for i in of('compare')] == ['LT']
    ends = {_integer(i) for i in of('constant')}
    initial = instructions[loop.operand_ids[0]]
    if less and len(counters) == len(ends) == 1 and initial.opcode == 'tuple':
      start = instructions[initial.operand_ids[counters.pop()]]
      while start.opcode in ('copy', 'bitcast'):
        start = instructions[start.operand_ids[0]]
      first, end = _integer(start), ends.pop()
      if first is not None and end is not None and end > first:
        return end - first
    self.unknown_loops.append(loop.name)
    return 1

  def _flops(self, run: _Run) -> int:
    """Floating-point operations of one run of a product, else 0."""
    instruction = run.instruction
    if instruction.opcode not in ('dot', 'convolution'):
      return 0
    lhs, rhs = (
        self._by_id[run.computation.id][x].shape.dimensions
        for x in instruction.operand_ids
    )
    out = instruction.shape.dimensions
    if instruction.opcode == 'dot':
      contracted = instruction.dot_dimension_numbers.lhs_contracting_dimensions
      return 2 * math.prod(out) * math.prod(lhs[d] for d in contracted)
    numbers = instruction.convolution_dimension_numbers
    pairs = 1
    for window, axis, out_axis in zip(
        instruction.window.dimensions,
        numbers.input_spatial_dimensions,
        numbers.output_spatial_dimensions,
        strict=True,
    ):
      pairs *= _valid_pairs(window, lhs[axis], out[out_axis])
    return (
        2
        * pairs
        * rhs[numbers.kernel_input_feature_dimension]
        * out[numbers.output_feature_dimension]
        * out[numbers.output_batch_dimension]
        # Each group of the batch sees its own features only.
        // max(instruction.batch_group_count, 1)
    )

  def _exchanged(self, run: _Run) -> Iterator[Collective]:
    """The arrays of one collective instruction."""
    instruction = run.instruction
    kind = instruction.opcode.removesuffix('-start')
    instructions = self._by_id[run.computation.id]
    operands = [instructions[x] for x in instruction.operand_ids]
    results = list(instruction.shape.tuple_shapes) or [instruction.shape]
    if kind != instruction.opcode and kind != 'all-reduce':
      # (operands, results, ...): a start also returns what it was given.
      whole = results[1]
      results = list(whole.tuple_shapes) or [whole]
    group = self._group_size(instruction)
    for operand, result in zip(operands, results, strict=False):
      shape = max(operand.shape, result, key=_num_bytes)
      size = run.times * _num_bytes(shape)
      yield Collective(
          kind=kind,
          shape=tuple(shape.dimensions),
          dtype=_dtype_name(shape.element_type),
          bytes=size,
          times=run.times,
          traffic=size * _TRAFFIC[kind](group),
          group_size=group,
          op_name=self._origin(instructions, operand)
          or instruction.metadata.op_name,
      )

  def _origin(self, instructions: dict[int, Any], operand: Any) -> str:
    """The name of what made an operand.

    XLA combines collectives and names the result after one of them, so the
    operands are asked.
    """
    while operand.opcode in _TRANSPARENT and operand.operand_ids:
      index = operand.tuple_index
      operand = instructions[operand.operand_ids[0]]
      if operand.opcode == 'tuple':
        operand = instructions[operand.operand_ids[index]]
      elif operand.opcode == 'fusion' and operand.shape.tuple_shapes:
        return self._fused_origin(operand, index)
    return operand.metadata.op_name

  def _fused_origin(self, fusion: Any, index: int) -> str:
    """The name of one of several results of a fusion."""
    computation = self._computations[fusion.called_computation_ids[0]]
    inner = self._by_id[computation.id]
    root = inner[computation.root_id]
    if root.opcode == 'tuple':
      root = inner[root.operand_ids[index]]
    return root.metadata.op_name or fusion.metadata.op_name

  def _group_size(self, instruction: Any) -> int:
    """Devices of one group; all of them where none are listed."""
    mesh = getattr(instruction, 'mesh_axes_replica_group_list', None)
    if mesh is not None and mesh.axes:
      sizes = [axis.size for axis in mesh.mesh.axes]
      return math.prod(
          axis.sub_axis_info.size
          if axis.HasField('sub_axis_info')
          else sizes[axis.mesh_axis_index]
          for axis in mesh.axes
      )
    tiled = instruction.iota_collective_device_list
    if tiled.num_devices_per_group:
      return tiled.num_devices_per_group
    groups = (
        instruction.collective_device_list.replica_groups
        or instruction.replica_groups
    )
    if groups:
      return len(groups[0].replica_ids)
    # Pairs of a permutation; or none listed, which means all devices.
    if instruction.source_target_pairs:
      return 2
    return max(self._module.device_assignment.computation_count, 1)


def _integer(instruction: Any) -> int | None:
  """The value of an integer constant, None for anything else."""
  literal = instruction.literal
  values = [*literal.s32s, *literal.s64s]
  return int(values[0]) if len(values) == 1 else None


def _valid_pairs(window: Any, in_size: int, out_size: int) -> int:
  """Pairs of output and kernel positions that meet a number of the input.

  Batched products become convolutions whose window mostly sees padding and
  holes; those cost nothing.

  Args:
    window: A dimension of an HLO window.
    in_size: Size of the input along it.
    out_size: Size of the output along it.
  """
  dilation = max(window.base_dilation, 1)
  kernel = np.arange(window.size) * max(window.window_dilation, 1)
  output = np.arange(out_size) * max(window.stride, 1)
  position = output[:, None] + kernel[None] - window.padding_low
  valid = (position >= 0) & (position <= (in_size - 1) * dilation)
  return int(np.sum(valid & (position % dilation == 0)))


def _dtype_name(element_type: int) -> str:
  from tensorflow.compiler.xla import xla_data_pb2

  return xla_data_pb2.PrimitiveType.Name(element_type).lower()


def _num_bytes(shape: Any) -> int:
  """Bytes of an array, without the padding of its layout."""
  name = _dtype_name(shape.element_type)
  bits = 8 if name == 'pred' else int((re.findall(r'\d+', name) or [0])[0])
  return math.prod(shape.dimensions) * bits // 8


def total(values: Iterable[Any], field: str) -> Any:
  """Sum of a field of products or collectives."""
  return sum(getattr(value, field) for value in values)
