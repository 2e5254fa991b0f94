# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The arrays that the devices of a compiled program exchange."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
from typing import Any

from moe_peft.compile import hlo

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
class Collective:
  """One array that devices exchange.

  Attributes:
    kind: 'all-reduce' and so on.
    shape: Shape of the whole array: what an all-gather returns, what a
      reduce-scatter takes.
    dtype: 'bf16' and so on.
    bytes: Bytes of that array, times its runs in a step.
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


def find(program: hlo.Program) -> list[Collective]:
  """All arrays that devices exchange; combined ones are taken apart."""
  return [
      collective
      for executed in program.executed
      if executed.instruction.opcode.removesuffix('-start') in _TRAFFIC
      for collective in _exchanged(program, executed)
  ]


def _exchanged(
    program: hlo.Program, executed: hlo.Executed
) -> Iterator[Collective]:
  """The arrays of one collective instruction."""
  instruction = executed.instruction
  kind = instruction.opcode.removesuffix('-start')
  results = list(instruction.shape.tuple_shapes) or [instruction.shape]
  if kind != instruction.opcode and kind != 'all-reduce':
    # (operands, results, ...): a start also returns what it was given.
    whole = results[1]
    results = list(whole.tuple_shapes) or [whole]
  group = _group_size(instruction) or program.num_devices
  for operand, result in zip(executed.operands, results, strict=False):
    shape = max(operand.shape, result, key=hlo.num_bytes)
    size = executed.times * hlo.num_bytes(shape)
    yield Collective(
        kind=kind,
        shape=tuple(shape.dimensions),
        dtype=hlo.dtype_name(shape),
        bytes=size,
        times=executed.times,
        traffic=size * _TRAFFIC[kind](group),
        group_size=group,
        op_name=_origin(program, executed.scope, operand)
        or instruction.metadata.op_name,
    )


def _origin(
    program: hlo.Program, scope: Mapping[int, Any], operand: Any
) -> str:
  """The name of what made an operand.

  XLA combines collectives and names the result after one of them, so the
  operands are asked.
  """
  while operand.opcode in _TRANSPARENT and operand.operand_ids:
    index = operand.tuple_index
    operand = scope[operand.operand_ids[0]]
    if operand.opcode == 'tuple':
      operand = scope[operand.operand_ids[index]]
    elif operand.opcode == 'fusion' and operand.shape.tuple_shapes:
      root, inner = program.root(operand.called_computation_ids[0])
      if root.opcode == 'tuple':
        root = inner[root.operand_ids[index]]
      return root.metadata.op_name or operand.metadata.op_name
  return operand.metadata.op_name


def _group_size(instruction: Any) -> int | None:
  """Devices of one group; None for all devices."""
  mesh = getattr(instruction, 'mesh_axes_replica_group_list', None)
  if mesh is not None and mesh.axes:
    sizes = [axis.size for axis in mesh.mesh.axes]
    return math.prod(
        axis.sub_axis_info.size
        if axis.HasField('sub_axis_info')
        else sizes[axis.mesh_axis_index]
        for axis in mesh.axes
    )
  if size := instruction.iota_collective_device_list.num_devices_per_group:
    return size
  groups = (
      instruction.collective_device_list.replica_groups
      or instruction.replica_groups
  )
  if groups:
    return len(groups[0].replica_ids)
  return 2 if instruction.source_target_pairs else None
