# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frozen kernels in 8 or 4 bits.

A quantized kernel is a box in Flax's sense: `nn.Module.param` opens it, and a
layer reads an array of floats. So no network knows of it, ours or T5X's, scans
slice what it holds, and XLA computes the floats where they are multiplied.
Adapters read inputs and outputs of the layer, which are not quantized.

`int8`: one float32 scale for each output, the largest weight over 127.
`nf4`: the 4-bit code of QLoRA (arXiv 2305.14314, appendix E), whose 16 values
are equally likely under a normal distribution, in blocks of at most 64 inputs
with one bfloat16 scale: 4.25 bits a weight. Two codes share a byte, since no
backend but TPUs keeps less than a byte for a number.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

from flax import struct
from flax.core import meta
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from moe_peft.core import trainable

KINDS = ('int8', 'nf4')

_BLOCK, _SMALLEST_BLOCK = 64, 16
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@struct.dataclass
class QuantizedArray(meta.AxisMetadata):
  """A kernel as it is stored; arrays, or anything that stands for them.

  Both arrays have a first axis of one, and in a scanned stack the axis of
  layers comes next, before those of the kernel. That is where our scans and
  T5X's look for it, and the layers lie one after the other: a stack
  `[in, layers, out]` would be copied whole before a scan reads it.

  Attributes:
    values: `<int8>` of the kernel's shape, or `<uint8>` with two codes a byte,
      half as many along the axis of blocks.
    scales: `<float32>`, 1 along the inputs, or `<bfloat16>`, the number of
      blocks along their axis.
  """

  values: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the kernel; in a stack the axis of layers comes first."""
    return self.unboxed.shape

  @property
  def dtype(self) -> Any:
    """Type of the stored values; `nf4` has bytes."""
    return self.values.dtype

  @property
  def kind(self) -> str:
    """One of `KINDS`."""
    return 'int8' if self.values.dtype == jnp.int8 else 'nf4'

  @property
  def unboxed(self) -> jax.ShapeDtypeStruct:
    """Shape and type of the floats."""
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self)
    return jax.eval_shape(QuantizedArray.unbox, plain)

  def unbox(self) -> jax.Array:
    """Returns the kernel, `<float32>`."""
    if self.kind == 'int8':
      return (self.values.astype(jnp.float32) * self.scales)[0]
    sizes = zip(self.values.shape, self.scales.shape, strict=True)
    axis = [bytes_ > blocks for bytes_, blocks in sizes].index(True)
    before, after = self.values.shape[:axis], self.values.shape[axis + 1 :]
    num_blocks = self.scales.shape[axis]
    codes = self.values.reshape(*before, num_blocks, -1, *after)
    codes = jnp.concatenate([codes & 15, codes >> 4], axis + 1)
    scales = jnp.expand_dims(self.scales, axis + 1).astype(jnp.float32)
    return (_nf4_values(codes) * scales).reshape(*before, -1, *after)[0]

  def replace_boxed(self, val: jax.Array) -> jax.Array:
    """A kernel that is written is one of floats."""
    return val

  def add_axis(self, index: int, params: Mapping[Any, Any]) -> 'QuantizedArray':
    """A scan stacks both arrays; nothing here depends on their axes."""
    del index, params
    return self

  def remove_axis(
      self, index: int, params: Mapping[Any, Any]
  ) -> 'QuantizedArray':
    """As `add_axis`."""
    del index, params
    return self


def _nf4_values(codes: jax.Array) -> jax.Array:
  """The values of codes, `<float32>`; a tree of choices, as a table of 16
  would be a gather, which is slow on TPUs."""
  values = [jnp.float32(value) for value in _NF4]
  for bit in range(4):
    odd = (codes >> bit) & 1 == 1
    values = [
        jnp.where(odd, high, low)
        for low, high in zip(values[::2], values[1::2], strict=True)
    ]
  return values[0]


def kind_of(
    path: str, shape: Sequence[int], names: Sequence[str], base_dtype: Any
) -> str | None:
  """How a frozen parameter is quantized, one of `KINDS`, or None.

  Kernels of layers are quantized. Embeddings, the output layer, norms and
  biases are small, or cost most accuracy, and stay bfloat16; so does a kernel
  that cannot be cut into blocks.

  Args:
    path: Path of the parameter.
    shape: Its shape.
    names: Logical names of its axes.
    base_dtype: The type of the base, perhaps one of `KINDS`.
  """
  if base_dtype not in KINDS or 'vocab' in names:
    return None
  if not path.endswith('/kernel') or trainable.is_adapter(path):
    return None
  sizes = [x for x, name in zip(shape, names, strict=True) if name != 'layers']
  if base_dtype == 'nf4' and not _block(sizes[_inputs(_layers(names)[1])[-1]]):
    return None
  return base_dtype


def float_dtype(base_dtype: Any) -> Any:
  """The type of what is not quantized in a base."""
  return jnp.bfloat16 if base_dtype in KINDS else base_dtype


def name_of(base_dtype: Any) -> str:
  """The name of a type of bases."""
  return base_dtype if base_dtype in KINDS else jnp.dtype(base_dtype).name


def structs(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    names: Mapping[str, Sequence[str]],
    base_dtype: Any,
) -> dict[str, jax.ShapeDtypeStruct | QuantizedArray]:
  """How the frozen parameters of a base are stored, by path.

  Args:
    shapes: The parameters.
    names: Logical names of their axes.
    base_dtype: A type of floats, or one of `KINDS`.
  """

  def stored(path, x):
    kind = kind_of(path, x.shape, names.get(path, ()), base_dtype)
    if kind is None:
      return jax.ShapeDtypeStruct(x.shape, float_dtype(base_dtype))
    return _stored(x.shape, kind, names[path])

  return {path: stored(path, x) for path, x in shapes.items()}


def _inputs(names: Sequence[str]) -> tuple[int, ...]:
  """Axes of the kernel of one layer that it contracts: all but the last,
  `embed`, or the first alone."""
  return tuple(range(len(names) - 1)) if names[-1] == 'embed' else (0,)


def _block(size: int) -> int:
  """Inputs that share a scale; 0 if there are no blocks of an even size."""
  sizes = range(_BLOCK, _SMALLEST_BLOCK - 1, -2)
  return next((block for block in sizes if size % block == 0), 0)


@functools.partial(jax.jit, static_argnames=('kind', 'inputs'))
def _quantize(
    kernel: jax.Array, kind: str, inputs: tuple[int, ...]
) -> QuantizedArray:
  """Quantizes the kernel of one layer."""
  kernel = kernel.astype(jnp.float32)[None]
  inputs = tuple(axis + 1 for axis in inputs)
  if kind == 'int8':
    largest = jnp.max(jnp.abs(kernel), inputs, keepdims=True)
    scales = jnp.where(largest > 0, largest, 1.0) / 127
    return QuantizedArray(jnp.rint(kernel / scales).astype(jnp.int8), scales)
  axis = inputs[-1]
  before, after = kernel.shape[:axis], kernel.shape[axis + 1 :]
  blocks = kernel.reshape(*before, -1, _block(kernel.shape[axis]), *after)
  largest = jnp.max(jnp.abs(blocks), axis + 1)
  scales = jnp.where(largest > 0, largest, 1.0).astype(jnp.bfloat16)
  scaled = blocks / jnp.expand_dims(scales, axis + 1).astype(jnp.float32)
  middles = [(low + high) / 2 for low, high in zip(_NF4, _NF4[1:])]  # noqa: B905
  codes = sum((scaled > middle).astype(jnp.uint8) for middle in middles)
  low, high = jnp.split(codes, 2, axis + 1)
  return QuantizedArray(
      (low | high << 4).reshape(*before, -1, *after), scales
  )


def as_given(stored: Any, names: Sequence[str]) -> Any:
  """A parameter as `quantize` takes it: layers stand as in the network.

  Args:
    stored: A `QuantizedArray` or another parameter, which stays as it is.
    names: Logical names of the axes.

  Returns:
    What has its shape.
  """
  if not isinstance(stored, QuantizedArray):
    return stored
  shape, (layers, _) = list(stored.shape), _layers(names)
  if layers is not None:
    shape.insert(layers, shape.pop(0))
  return jax.ShapeDtypeStruct(tuple(shape), jnp.float32)


def quantize(kernel: Any, kind: str, names: Sequence[str]) -> QuantizedArray:
  """Quantizes a kernel, one layer of a scanned stack after the other.

  Args:
    kernel: `<float>`, on the host.
    kind: One of `KINDS`.
    names: Logical names of its axes.

  Returns:
    Arrays on the host.
  """
  layers, names = _layers(names)
  one = lambda x: jax.device_get(_quantize(x, kind, _inputs(names)))
  if layers is None:
    return one(kernel)
  parts = [
      one(np.take(kernel, i, layers)) for i in range(kernel.shape[layers])
  ]
  return jax.tree.map(lambda *xs: np.stack(xs, 1), *parts)


def _layers(names: Sequence[str]) -> tuple[int | None, tuple[str, ...]]:
  """The axis of layers, if there is one, and the names of the others."""
  names = list(names)
  if 'layers' not in names:
    return None, tuple(names)
  axis = names.index('layers')
  return axis, (*names[:axis], *names[axis + 1 :])


def _stored(
    shape: Sequence[int], kind: str, names: Sequence[str]
) -> QuantizedArray:
  """Shapes of a quantized kernel."""
  shape, (layers, names) = list(shape), _layers(names)
  length = None if layers is None else shape.pop(layers)
  one = jax.eval_shape(
      lambda x: _quantize(x, kind, _inputs(names)),
      jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
  )
  if length is None:
    return one
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1, length, *x.shape[1:]), x.dtype), one
  )


def split(
    array: jax.ShapeDtypeStruct | QuantizedArray,
    names: Sequence[str],
    sharding: NamedSharding,
) -> jax.ShapeDtypeStruct | QuantizedArray:
  """Adds to what `structs` returns how it is split over devices.

  The arrays of a quantized kernel are split as the kernel is, except where they
  cannot be: scales have one input, or fewer blocks than there are parts.

  Args:
    array: What is split.
    names: Logical names of the axes of the kernel.
    sharding: That of the kernel.
  """
  if not isinstance(array, QuantizedArray):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
  mesh, spec = sharding.mesh, list(sharding.spec)
  layers, names = _layers(names)
  spec += [None] * (len(names) + 1)
  first = [] if layers is None else [spec.pop(layers)]
  spec = [None, *first, *spec[: len(names)]]

  def parts(axes):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)

  def place(x):
    axes = [
        axes if size % parts(axes) == 0 else None
        for size, axes in zip(x.shape, spec, strict=False)
    ]
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
    )

  return jax.tree.map(place, array)
