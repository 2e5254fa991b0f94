# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers besides attention: dense, MLP, embedding, norm.

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
