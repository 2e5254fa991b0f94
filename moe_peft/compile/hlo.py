# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The instructions of a compiled program, and how often a step runs each.

XLA's own cost analysis counts the body of a loop once, and a scanned network is
one loop. Here every instruction is counted as often as a step runs it.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import re
from typing import Any

# Instructions that run a computation once, besides `while`.
_CALLERS = ('fusion', 'call', 'conditional', 'async-start', 'custom-call')


@dataclasses.dataclass(frozen=True)
class Executed:
  """An instruction that a step runs.

  Attributes:
    times: How often a step runs it.
    instruction: The `HloInstructionProto`.
    scope: The instructions of its computation, by id.
  """

  times: int
  instruction: Any
  scope: Mapping[int, Any]

  @property
  def operands(self) -> list[Any]:
    """The instructions that make its operands."""
    return [self.scope[x] for x in self.instruction.operand_ids]


class Program:
  """The optimized HLO of a compiled function.

  All branches of a conditional are counted, of which a step runs one: with
  conditionals the sums are upper bounds.

  Attributes:
    executed: All instructions that a step runs.
    unknown_loops: Names of loops whose trip count is not a constant; they are
      counted as one pass.
    num_devices: For how many devices it is compiled.
  """

  def __init__(self, serialized: bytes):
    """Reads a serialized `HloModuleProto`."""
    # TensorFlow, which every command needs for its data, brings the format.
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto.FromString(serialized)
    self._computations = {c.id: c for c in module.computations}
    self._scopes = {
        c.id: {i.id: i for i in c.instructions} for c in module.computations
    }
    self.num_devices = max(module.device_assignment.computation_count, 1)
    self.unknown_loops: list[str] = []
    self.executed = list(self._walk(module.entry_computation_id, 1))

  def custom_calls(self) -> dict[str, int]:
    """Targets of custom calls, whose multiplications nobody can see."""
    return dict(collections.Counter(
        executed.instruction.custom_call_target
        for executed in self.executed
        if executed.instruction.opcode == 'custom-call'
    ))

  def root(self, computation_id: int) -> tuple[Any, Mapping[int, Any]]:
    """The instruction that a computation returns, and its scope."""
    scope = self._scopes[computation_id]
    return scope[self._computations[computation_id].root_id], scope

  def _walk(self, computation_id: int, times: int) -> Iterator[Executed]:
    scope = self._scopes[computation_id]
    for instruction in scope.values():
      yield Executed(times, instruction, scope)
      called = instruction.called_computation_ids
      if instruction.opcode == 'while':
        trips = self._trip_count(instruction, scope)
        yield from self._walk(called[0], times * trips)
      elif instruction.opcode in _CALLERS:
        for inner in called:
          yield from self._walk(inner, times)

  def _trip_count(self, loop: Any, scope: Mapping[int, Any]) -> int:
    """Trips of a loop that counts up by one, as JAX's do."""
    known = re.search(
        r'"known_trip_count":\s*\{"n":\s*"(\d+)"', str(loop.backend_config)
    )
    if known:
      return int(known[1])
    # TPU programs do not say it. Their condition compares an element of the
    # loop's tuple with a constant, and the element starts from a constant.
    condition = [
        executed.instruction
        for executed in self._walk(loop.called_computation_ids[1], 1)
    ]
    of = lambda opcode: [i for i in condition if i.opcode == opcode]
    counters = {i.tuple_index for i in of('get-tuple-element')}
    less = [i.comparison_direction for i in of('compare')] == ['LT']
    ends = {_integer(i) for i in of('constant')}
    initial = scope[loop.operand_ids[0]]
    if less and len(counters) == len(ends) == 1 and initial.opcode == 'tuple':
      start = scope[initial.operand_ids[counters.pop()]]
      while start.opcode in ('copy', 'bitcast'):
        start = scope[start.operand_ids[0]]
      first, end = _integer(start), ends.pop()
      if first is not None and end is not None and end > first:
        return end - first
    self.unknown_loops.append(loop.name)
    return 1


def _integer(instruction: Any) -> int | None:
  """The value of an integer constant, None for anything else."""
  values = [*instruction.literal.s32s, *instruction.literal.s64s]
  return int(values[0]) if len(values) == 1 else None


def dtype_name(shape: Any) -> str:
  """The type of an array, as in HLO: 'bf16' and so on."""
  from tensorflow.compiler.xla import xla_data_pb2

  return xla_data_pb2.PrimitiveType.Name(shape.element_type).lower()


def num_bytes(shape: Any) -> int:
  """Bytes of an array, without the padding of its layout."""
  name = dtype_name(shape)
  bits = 8 if name == 'pred' else int((re.findall(r'\d+', name) or [0])[0])
  return math.prod(shape.dimensions) * bits // 8


def total(values: Iterable[Any], field: str) -> Any:
  """Sum of a field of products or collectives."""
  return sum(getattr(value, field) for value in values)
