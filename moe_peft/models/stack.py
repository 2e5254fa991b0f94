# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a stack of layers runs, and the parts that layers are made of.

Unrolled, as `layers_0`, `layers_1` and so on, or as one scan over stacked
parameters, with or without remat. `config` is the configuration of a network;
only fields that those of t5.py and decoder.py share are read.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.models import attention
from moe_peft.models import dot_product
from moe_peft.models import layers
from moe_peft.models import token_scores

# What each policy keeps from the forward pass; None recomputes everything.
# training/remat.py puts one of the others in the place of 'auto'; where nothing
# is trained it keeps everything, as 'none'.
REMAT_POLICIES = {
    'none': None,
    'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    'full': None,
    'auto': None,
}

# Where the layer axis stands in the parameters of a scanned stack.
PARAM_SCAN_AXIS = 1


def check_config(config: Any, sizes: Sequence[str]) -> None:
  """Raises errors.UserError for the first wrong field of a configuration.

  Args:
    config: Sizes and options of a network.
    sizes: Names of fields that must be positive integers.
  """
  for name in sizes:
    value = getattr(config, name)
    if not isinstance(value, int) or value < 1:
      raise errors.UserError(
          f'It must be a positive integer, not {value!r}.', field(config, name)
      )
  for name, known in (
      ('remat_policy', REMAT_POLICIES),
      ('attention', dot_product.IMPLEMENTATIONS),
  ):
    if (value := getattr(config, name)) not in known:
      raise errors.UserError(
          f'There is no {name} {value!r}.', field(config, name),
          f'Choose from {", ".join(known)}.',
      )
  if not 0.0 <= config.dropout_rate < 1.0:
    raise errors.UserError(
        f'It must be at least 0 and below 1, not {config.dropout_rate!r}.',
        field(config, 'dropout_rate'),
    )
  for function in config.mlp_activations:
    if function != 'linear' and not callable(getattr(nn, function, None)):
      raise errors.UserError(
          f'flax.linen has no function {function!r}.',
          field(config, 'mlp_activations'),
          "Use for example ('relu',) or ('gelu', 'linear').",
      )


def field(config: Any, name: str) -> str:
  """The field of a configuration as gin writes it, `t5.T5Config.emb_dim`."""
  kind = type(config)
  return f'{kind.__module__.rpartition(".")[2]}.{kind.__name__}.{name}'


def norm(config: Any, name: str, epsilon: float = 1e-6) -> layers.LayerNorm:
  """Builds a norm in the current scope."""
  return layers.LayerNorm(dtype=config.dtype, epsilon=epsilon, name=name)


def attend(
    layer: nn.Module, name: str, decode: bool = False, **options: Any
) -> attention.MultiHeadDotProductAttention:
  """Builds an attention block in the scope of `layer`.

  Args:
    layer: Has the attributes `config` and `deterministic`.
    name: Name of the block.
    decode: Whether it keeps a cache.
    **options: Further attributes of the block.
  """
  cfg = layer.config
  return attention.MultiHeadDotProductAttention(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      joined_kernels=not cfg.scan_layers,
      dropout_rate=cfg.dropout_rate,
      float32_logits=cfg.float32_attention_logits,
      implementation=cfg.attention,
      dtype=cfg.dtype,
      deterministic=layer.deterministic,
      decode=decode,
      name=name,
      **options,
  )


def mlp(layer: nn.Module, **options: Any) -> layers.MlpBlock:
  """Builds the MLP in the scope of `layer`; `options` are its attributes."""
  cfg = layer.config
  return layers.MlpBlock(
      mlp_dim=cfg.mlp_dim,
      activations=tuple(cfg.mlp_activations),
      dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      deterministic=layer.deterministic,
      name='mlp',
      **options,
  )


def residual(layer: nn.Module, x, y):
  """Returns `x + dropout(y)`, `[batch, length, embed]`."""
  rate = layer.config.dropout_rate
  x = x + layers.length_dropout(rate, layer.deterministic)(y)
  names = ('batch', 'length', 'embed')
  return nn_partitioning.with_sharding_constraint(x, names)


def output(
    config: Any,
    embedder: layers.Embed,
    x: jax.Array,
    targets: jax.Array | None = None,
    divisor: float = 1.0,
    softcap: float = 0.0,
    positions: jax.Array | None = None,
) -> jax.Array | token_scores.TokenScores:
  """Applies the output layer, in the current scope where it is not tied.

  Args:
    config: Sizes and options of a network.
    embedder: The embedding.
    x: `[batch, length, embed]`.
    targets: `<int32>[batch, n]`, whose scores are wanted and not logits.
    divisor: Divides the logits.
    softcap: Bound of the logits, which approach it as tanh does; 0: none.
    positions: `<int32>[batch, n]`, where in the row logits are wanted; None:
      everywhere.

  Returns:
    `<float32>[batch, n, vocab]`, also in a bfloat16 model: softmax needs
    it. Or the scores of the targets.
  """

  def finish(logits):
    logits = dot_product.soft_cap(logits / divisor, softcap)
    names = ('batch', 'length', 'vocab')
    return nn_partitioning.with_sharding_constraint(logits, names)

  dense = None
  if not config.logits_via_embedding:
    dense = layers.DenseGeneral(
        config.vocab_size,
        kernel_axes=('embed', 'vocab'),
        dtype=jnp.float32,
        name='logits_dense',
    )

  def wanted(x):
    if positions is None:
      return x
    return jnp.take_along_axis(x, positions[..., None], axis=1)

  params = (dense or embedder).variables.get('params', {})
  if 'adapter' in params:  # It runs where its layer is called, on whole rows.
    logits = wanted(finish(dense(x)))
    return logits if targets is None else token_scores.of_logits(
        logits, targets
    )
  x = wanted(x)
  if targets is None:
    return finish(dense(x) if dense else embedder.attend(x))
  kernel = params['kernel'] if dense else params['embedding'].T
  return token_scores.of_features(
      lambda x: finish(layers.product_in_float32(x, kernel)),
      x, targets, config.vocab_size,
  )


def run_stack(
    layer_class, name, num_layers, config, attributes, x, *shared, layered=()
):
  """Runs `num_layers` layers, unrolled or as one scan, in the current scope.

  The scan has the stack's name, so paths are `encoder/encoder/...`. What
  adapters sow ('intermediates', 'routing') is stacked on a new first axis.

  Args:
    layer_class: `EncoderLayer` or the like.
    name: Name of the scan, 'encoder' or 'decoder'.
    num_layers: Number of layers.
    config: The model's configuration.
    attributes: Further attributes of the layers.
    x: `[batch, length, embed]`.
    *shared: Arrays that every layer gets.
    layered: Trees of arrays with a leading axis of layers, of which every layer
      gets its own row, after `x`.

  Returns:
    `[batch, length, embed]`.
  """
  if config.remat_policy not in ('none', 'auto'):
    layer_class = nn_partitioning.remat(
        layer_class,
        prevent_cse=not config.scan_layers,
        policy=REMAT_POLICIES[config.remat_policy],
    )
  if not config.scan_layers:
    for index in range(num_layers):
      layer = layer_class(config, name=f'layers_{index}', **attributes)
      rows = jax.tree.map(lambda array: array[index], layered)  # noqa: B023
      x, _ = layer(x, *rows, *shared)
    return x
  scanned = nn_partitioning.scan_with_axes(
      layer_class,
      variable_axes={
          'params': PARAM_SCAN_AXIS,
          'cache': 0,
          'intermediates': 0,
          'routing': 0,
      },
      split_rngs={'params': True, 'dropout': True},
      in_axes=(*(0,) * len(layered), *(nn.broadcast,) * len(shared)),
      length=num_layers,
      # A loop in the loop of decoding would move the kernels for every token.
      unroll=num_layers if attributes.get('decode') else 1,
      axis_name='layers',
  )
  x, _ = scanned(config, name=name, **attributes)(x, *layered, *shared)
  return x
