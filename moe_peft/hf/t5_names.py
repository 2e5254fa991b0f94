# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of T5's tensors, Hugging Face and T5X.

The relative position bias is one table per stack in Hugging Face's T5 and mT5,
so it is replicated on import; on export all layers must agree. umT5 has one per
layer.
"""

from collections.abc import Iterator
import dataclasses

from moe_peft.hf import entries as entries_lib
from moe_peft.models import t5

HF_EMBEDDINGS = (
    'shared.weight',
    'encoder.embed_tokens.weight',
    'decoder.embed_tokens.weight',
)
HF_LOGITS = 'lm_head.weight'
# A tensor of old checkpoints, which transformers also ignores.
HF_IGNORED = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
# T5X's name of a block of a layer: its sublayer and name in Hugging Face.
_BLOCKS = {
    'encoder': {
        'attention': 'layer.0.SelfAttention',
        'mlp': 'layer.1.DenseReluDense',
    },
    'decoder': {
        'self_attention': 'layer.0.SelfAttention',
        'encoder_decoder_attention': 'layer.1.EncDecAttention',
        'mlp': 'layer.2.DenseReluDense',
    },
}
_NORMS = {
    'encoder': ('pre_attention_layer_norm', 'pre_mlp_layer_norm'),
    'decoder': (
        'pre_self_attention_layer_norm',
        'pre_cross_attention_layer_norm',
        'pre_mlp_layer_norm',
    ),
}


def entries(config: t5.T5Config, layout: str) -> list[entries_lib.Entry]:
  """Returns all parameters of a T5; a tied output layer is none."""
  found = entries_lib.ends(
      config.vocab_size, config.emb_dim, HF_EMBEDDINGS[0],
      None if config.logits_via_embedding else HF_LOGITS,
  )
  for stack, num_layers in (
      ('encoder', config.num_encoder_layers),
      ('decoder', config.num_decoder_layers),
  ):
    norm = f'{stack}.final_layer_norm.weight'
    found.append(
        entries_lib.plain(
            f'{stack}/{stack}_norm/scale', norm, (config.emb_dim,)
        )
    )
    tensors = list(_layer_tensors(stack, config, layout))
    bias = _position_bias(stack, config)
    if layout == 't5' and config.shares_bias:
      found.append(dataclasses.replace(bias, path=f'{stack}/{bias.path}'))
    else:
      tensors.append(bias)
    found.extend(entries_lib.layered(tensors, stack, num_layers, layout))
  return found


def _position_bias(stack: str, config: t5.T5Config) -> entries_lib.Entry:
  size = (config.num_heads, config.relative_attention_num_buckets)
  name = 'layer.0.SelfAttention.relative_attention_bias.weight'
  layer = '{layer}' if config.relative_bias_per_layer else 0
  return entries_lib.Entry(
      'relpos_bias/rel_embedding', (f'{stack}.block.{layer}.{name}',),
      size[::-1], size, transpose=True,
  )


def _layer_tensors(
    stack: str, config: t5.T5Config, layout: str
) -> Iterator[entries_lib.Entry]:
  """Yields the tensors of a layer; `{layer}` stands for its number."""
  heads = (config.num_heads, config.head_dim)
  embed = config.emb_dim
  for block, sublayer in _BLOCKS[stack].items():
    prefix = f'{stack}.block.{{layer}}.{sublayer}'
    if block == 'mlp':
      gated = len(config.mlp_activations) > 1
      names = ('wi_0', 'wi_1', 'wo') if gated else ('wi', 'wo')
      modules = dict(zip(names, names, strict=True))
      yield from entries_lib.mlp(modules, prefix, embed, config.mlp_dim)
      continue
    for name, letter in _PROJECTIONS.items():
      yield entries_lib.projection(
          f'{block}/{name}', f'{prefix}.{letter}', embed, heads, layout
      )
  for index, name in enumerate(_NORMS[stack]):
    source = f'{stack}.block.{{layer}}.layer.{index}.layer_norm.weight'
    yield entries_lib.plain(f'{name}/scale', source, (embed,))
