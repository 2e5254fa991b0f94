# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers besides attention: dense, MLP, embedding, norm, positions.

T5: arXiv 1910.10683; gated activations of T5 1.1: arXiv 2002.05202. Parameters
are float32 and carry logical axis names; arithmetic is in `dtype`.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np

with_sharding_constraint = nn_partitioning.with_sharding_constraint


def as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
  """Returns `(value,)` for one integer and a tuple for a sequence."""
  return (value,) if isinstance(value, int) else tuple(value)


class DenseGeneral(nn.Module):
  """A matrix product over any input axes into any output axes.

  The kernel has one dimension per name in `kernel_axes`. Two names with
  several input or output axes mean a joined, two-dimensional kernel, as in the
  public T5 checkpoints: `('embed', 'joined_kv')` holds all heads side by side.

  Attributes:
    features: Sizes of the output axes.
    axis: Input axes that are contracted.
    kernel_axes: Logical axis names of the kernel.
    dtype: Type of the arithmetic.
    kernel_scale: Variance of the initial kernel times its fan in.
    kernel_distribution: 'normal' or 'truncated_normal'.
    use_bias: Adds a learned bias, which has the kernel's output axes.
  """

  features: int | Sequence[int]
  axis: int | Sequence[int] = -1
  kernel_axes: tuple[str, ...] = ()
  dtype: Any = jnp.float32
  kernel_scale: float = 1.0
  kernel_distribution: str = 'truncated_normal'
  use_bias: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[..., *axis]` to `[..., *features]`."""
    features = as_tuple(self.features)
    axis = tuple(a % inputs.ndim for a in as_tuple(self.axis))
    in_shape = tuple(inputs.shape[a] for a in axis)
    if len(self.kernel_axes) == len(in_shape) + len(features):
      kernel_shape, num_in = in_shape + features, len(in_shape)
    else:
      kernel_shape, num_in = (int(np.prod(in_shape)), int(np.prod(features))), 1
    kernel_init = nn.initializers.variance_scaling(
        self.kernel_scale,
        'fan_in',
        self.kernel_distribution,
        in_axis=tuple(range(num_in)),
        out_axis=tuple(range(num_in, len(kernel_shape))),
    )
    kernel_axes = tuple(self.kernel_axes)
    nn_partitioning.param_with_axes(
        'kernel', kernel_init, kernel_shape, jnp.float32, axes=kernel_axes,
        module=self,
    )

    # Backward, the kernel is made again from what is stored: a scan would keep
    # every layer's, in the type of the arithmetic, beside the base.
    @functools.partial(
        jax.checkpoint, prevent_cse=False,
        policy=jax.checkpoint_policies.nothing_saveable,
    )
    def product(inputs, stored):
      kernel = with_sharding_constraint(nn.meta.unbox(stored), kernel_axes)
      kernel = jnp.asarray(kernel, self.dtype).reshape(in_shape + features)
      contracted = (axis, tuple(range(len(axis))))
      return jax.lax.dot_general(inputs, kernel, (contracted, ((), ())))

    outputs = product(
        jnp.asarray(inputs, self.dtype), self.get_variable('params', 'kernel')
    )
    if not self.use_bias:
      return outputs
    bias = nn_partitioning.param_with_axes(
        'bias',
        nn.initializers.zeros,
        kernel_shape[num_in:],
        jnp.float32,
        axes=kernel_axes[num_in:],
        module=self,
    )
    return outputs + jnp.asarray(bias, self.dtype).reshape(features)


def product_in_float32(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns `inputs @ kernel`, `<float32>`.

  Of two bfloat16 arrays no copy in float32 is made: their products are exact
  in float32, in which they are summed either way.
  """
  if inputs.dtype != kernel.dtype:
    inputs, kernel = inputs.astype(jnp.float32), kernel.astype(jnp.float32)
  return jnp.dot(inputs, kernel, preferred_element_type=jnp.float32)


class Activation(nn.Module):
  """An elementwise function as a named module, so that it can be adapted.

  It has no parameters. (IA)^3 (arXiv 2205.05638) and MoV (arXiv 2309.05444)
  scale its output.

  Attributes:
    function: Name of a function of `flax.linen`, or 'linear' for the identity.
    axis_names: Logical names of the last axis of input and output.
  """

  function: str
  axis_names: tuple[str, ...] = ('mlp',)

  @nn.compact  # An adapter may become its child.
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[batch, length, mlp]` to the same shape."""
    return activate(self.function, inputs)


def activate(function: str, inputs: jax.Array) -> jax.Array:
  """Applies the named function; `gelu` is the tanh approximation."""
  return inputs if function == 'linear' else getattr(nn, function)(inputs)


class MlpBlock(nn.Module):
  """The feed-forward block: dense in, activation, product of branches, dense.

  The first branch is activated by the submodule `act`; further branches (the
  second factor of a gated block) have no site of their own.

  Attributes:
    mlp_dim: Hidden size.
    activations: One function name per input projection.
    dropout_rate: Rate on the hidden activations, broadcast over length.
    dtype: Type of the arithmetic.
    deterministic: Switches dropout off.
    use_bias: Whether all its layers have a bias.
  """

  mlp_dim: int
  activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  deterministic: bool = True
  use_bias: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[batch, length, embed]` to the same shape."""
    hidden = None
    for index, function in enumerate(self.activations):
      branch = DenseGeneral(
          self.mlp_dim,
          kernel_axes=('embed', 'mlp'),
          dtype=self.dtype,
          use_bias=self.use_bias,
          name='wi' if len(self.activations) == 1 else f'wi_{index}',
      )(inputs)
      if index == 0:
        hidden = Activation(function, name='act')(branch)
      else:
        hidden = hidden * activate(function, branch)
    hidden = length_dropout(self.dropout_rate, self.deterministic)(hidden)
    hidden = with_sharding_constraint(hidden, ('batch', 'length', 'mlp'))
    return DenseGeneral(
        inputs.shape[-1],
        kernel_axes=('mlp', 'embed'),
        dtype=self.dtype,
        use_bias=self.use_bias,
        name='wo',
    )(hidden)


def length_dropout(rate: float, deterministic: bool) -> nn.Dropout:
  """T5's dropout: one mask for all positions of a sequence."""
  return nn.Dropout(rate, broadcast_dims=(-2,), deterministic=deterministic)


class Embed(nn.Module):
  """The token embedding, also used as output layer by tied models.

  Attributes:
    num_embeddings: Vocabulary size.
    features: Embedding size.
    dtype: Type of the embedded tokens.
    stddev: Standard deviation of the initial values.
  """

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32
  stddev: float = 1.0

  def setup(self):
    self.embedding = nn_partitioning.param_with_axes(
        'embedding',
        nn.initializers.normal(stddev=self.stddev),
        (self.num_embeddings, self.features),
        jnp.float32,
        axes=('vocab', 'embed'),
        module=self,
    )

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps `<int32>[batch, length]` to `[batch, length, embed]`."""
    embedded = jnp.asarray(self.embedding, self.dtype)[tokens]
    return with_sharding_constraint(embedded, ('batch', 'length', 'embed'))

  def attend(self, inputs: jax.Array) -> jax.Array:
    """Maps `[batch, length, embed]` to `<float32>[batch, length, vocab]`."""
    return product_in_float32(inputs, self.embedding.T)


class LayerNorm(nn.Module):
  """T5's norm: divides by the root mean square, no mean and no bias.

  Attributes:
    dtype: Type of the result; the statistics are float32.
    epsilon: Added to the mean square.
    logical_axis: Name of the axis that is normed, the last one.
  """

  dtype: Any = jnp.float32
  epsilon: float = 1e-6
  logical_axis: str = 'embed'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[..., features]` to the same shape."""
    scale = nn_partitioning.param_with_axes(
        'scale',
        nn.initializers.ones,
        (inputs.shape[-1],),
        jnp.float32,
        axes=(self.logical_axis,),
        module=self,
    )
    inputs = jnp.asarray(inputs, jnp.float32)
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    normed = inputs * jax.lax.rsqrt(mean_square + self.epsilon)
    return normed.astype(self.dtype) * jnp.asarray(scale, self.dtype)


class RelativePositionBiases(nn.Module):
  """T5's learned attention bias by bucketed distance (arXiv 1910.10683, 2.1).

  Attributes:
    num_heads: Number of attention heads.
    num_buckets: Number of buckets, over both directions if bidirectional.
    max_distance: Distances from here on share the last bucket.
    dtype: Type of the result.
  """

  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, length: int, bidirectional: bool) -> jax.Array:
    """Returns the bias `[1, heads, length, length]` (query, key)."""
    rel_embedding = nn_partitioning.param_with_axes(
        'rel_embedding',
        nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
        (self.num_heads, self.num_buckets),
        jnp.float32,
        axes=('heads', 'relpos_buckets'),
        module=self,
    )
    first, last = bucket_ranges(
        length, bidirectional, self.num_buckets, self.max_distance
    )
    positions = jnp.arange(length)
    distances = (positions[None, :] - positions[:, None])[..., None]
    # A product with one-hot rows: the gradient of a lookup would be a scatter,
    # which is slow on TPUs.
    one_hot = (first <= distances) & (distances <= last)
    one_hot = one_hot.astype(self.dtype)
    rel_embedding = jnp.asarray(rel_embedding, self.dtype)
    return jnp.einsum('hn,qkn->hqk', rel_embedding, one_hot)[None]


def bucket_ranges(
    length: int, bidirectional: bool, num_buckets: int, max_distance: int
) -> tuple[np.ndarray, np.ndarray]:
  """Which relative positions share each bucket of `relative_position_bucket`.

  So no array of `[length, length]` is made while a program is traced.

  Args:
    length: Of a row.
    bidirectional: As there.
    num_buckets: As there.
    max_distance: As there.

  Returns:
    The first and the last relative position of each bucket, `<int32>[buckets]`.
  """
  far = min(length, max_distance)  # From there on the bucket stays.
  positions = np.arange(-far, far + 1)
  buckets = relative_position_bucket(
      positions, bidirectional, num_buckets, max_distance
  )
  first = np.full(num_buckets, length, np.int32)
  last = np.full(num_buckets, -length, np.int32)
  np.minimum.at(first, buckets, positions)
  np.maximum.at(last, buckets, positions)
  first[buckets[0]], last[buckets[-1]] = -length, length
  return first, last


def relative_position_bucket(
    relative_position: np.ndarray,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> np.ndarray:
  """Returns the bucket of each distance (arXiv 1910.10683, section 2.1).

  Half of the buckets hold one distance each, the other half grow
  logarithmically up to `max_distance`. If `bidirectional`, keys after the
  query have their own half; otherwise they count as distance 0.

  Args:
    relative_position: `<int>[...]`, key position minus query position.
    bidirectional: Whether keys after the query are visible.
    num_buckets: Number of buckets.
    max_distance: Distances from here on share the last bucket.

  Returns:
    `<int32>[...]`, at least 0 and below `num_buckets`.
  """
  offset = np.zeros_like(relative_position)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(relative_position > 0, num_buckets, 0)
    distance = np.abs(relative_position)
  else:
    distance = np.maximum(-relative_position, 0)
  num_exact = num_buckets // 2
  # The small term keeps exact powers on the upper side of their boundary.
  growth = np.log(np.maximum(distance, 1) / num_exact + 1e-7) / np.log(
      max_distance / num_exact
  )
  logarithmic = num_exact + (growth * (num_buckets - num_exact)).astype(int)
  bucket = np.where(
      distance < num_exact,
      distance,
      np.minimum(logarithmic, num_buckets - 1),
  )
  return (offset + bucket).astype(np.int32)
