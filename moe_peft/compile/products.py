# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The multiplications of a compiled program."""

import dataclasses
import math
from typing import Any

import numpy as np

from moe_peft.compile import hlo


@dataclasses.dataclass(frozen=True)
class Product:
  """Multiplications of one instruction, a dot or a convolution.

  Attributes:
    flops: FLOP of all its runs in a step.
    op_name: Where the network asked for it, `jit(step)/.../query/dot_general`.
  """

  flops: int
  op_name: str


def find(program: hlo.Program) -> list[Product]:
  """All dots and convolutions (which is what TPUs make of dots)."""
  flops = {'dot': _flops_of_dot, 'convolution': _flops_of_convolution}
  return [
      Product(
          executed.times
          * flops[executed.instruction.opcode](
              executed.instruction,
              *(list(x.shape.dimensions) for x in executed.operands),
          ),
          executed.instruction.metadata.op_name,
      )
      for executed in program.executed
      if executed.instruction.opcode in flops
  ]


def _flops_of_dot(dot: Any, lhs: list[int], rhs: list[int]) -> int:
  del rhs
  contracted = dot.dot_dimension_numbers.lhs_contracting_dimensions
  return (
      2
      * math.prod(dot.shape.dimensions)
      * math.prod(lhs[axis] for axis in contracted)
  )


def _flops_of_convolution(
    convolution: Any, lhs: list[int], rhs: list[int]
) -> int:
  numbers = convolution.convolution_dimension_numbers
  out = convolution.shape.dimensions
  pairs = 1
  for window, axis, out_axis in zip(
      convolution.window.dimensions,
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
      // max(convolution.batch_group_count, 1)
  )


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
