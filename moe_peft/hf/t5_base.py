# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5's `config.json` and tensors as models/t5.py has them.

We write `config.json` ourselves. The writer of transformers 5 records
`tie_word_embeddings: true` for T5 1.1, with which older versions tie and scale
the output layer; their logits are then wrong by whole numbers.
"""

from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import t5_names
from moe_peft.hf import token_ids
from moe_peft.models import t5

# `gelu_new` is the tanh approximation, which flax.linen calls gelu. The plain
# `gelu` of transformers is the exact one, which we do not have.
_ACTIVATIONS = {
    'relu': ('relu',),
    'silu': ('silu',),
    'gated-gelu': ('gelu', 'linear'),
    'gated-silu': ('silu', 'linear'),
    'gated-relu': ('relu', 'linear'),
}
_FEED_FORWARD = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
_SIZES = {
    'vocab_size': 'vocab_size',
    'd_model': 'emb_dim',
    'num_heads': 'num_heads',
    'num_layers': 'num_encoder_layers',
    'd_kv': 'head_dim',
    'd_ff': 'mlp_dim',
}
_POSITIONS = {
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
}
TOKENIZER_FILES = ('spiece.model', 'tokenizer.json')
_NUM_BYTES = 384  # Ids of ByT5, which needs no file.
# All T5 begin decoding with the padding id, as SeqIO and T5X do.
GENERATION_CONFIG = {
    'decoder_start_token_id': 0,
    'eos_token_id': 1,
    'pad_token_id': 0,
}


def from_hf(config: base_config.HfConfig, layout: str = 't5') -> t5.T5Config:
  """Reads the sizes and options of a model from its `config.json`.

  Args:
    config: Contents of the file.
    layout: One of `entries.LAYOUTS`.

  Returns:
    The configuration. `logits_via_embedding` says that the output layer is
    tied and scaled; a tied output layer that is not scaled becomes a
    `logits_dense` of its own.

  Raises:
    errors.UserError: If it is not a model that `models/t5.py` computes.
  """
  sizes = base_config.sizes(config, _SIZES)
  base_config.check_fixed(
      config, {'layer_norm_epsilon': 1e-6, **GENERATION_CONFIG}
  )
  activation = config.get('feed_forward_proj', 'relu')
  if not isinstance(activation, str) or activation not in _ACTIVATIONS:
    raise base_config.unsupported(
        'feed_forward_proj', activation, f'one of {", ".join(_ACTIVATIONS)}'
    )
  base_config.check_fixed(config, _parts(activation))
  decoder_layers = config.get('num_decoder_layers')
  result = t5.T5Config(
      **sizes,
      num_decoder_layers=base_config.integer(
          'num_decoder_layers',
          config['num_layers'] if decoder_layers is None else decoder_layers,
      ),
      mlp_activations=_ACTIVATIONS[activation],
      dropout_rate=base_config.number(
          'dropout_rate', config.get('dropout_rate', 0.1)
      ),
      logits_via_embedding=_scales_logits(config),
      scan_layers=layout == 'scan',
      relative_bias_per_layer=config['model_type'] == 'umt5',
      **{
          name: base_config.integer(name, config.get(name, default))
          for name, default in _POSITIONS.items()
      },
  )
  t5.check_config(result)
  return result


def _parts(activation: str) -> dict[str, Any]:
  """What transformers writes beside `feed_forward_proj`, and believes more."""
  name = activation.removeprefix('gated-')
  return {
      'dense_act_fn': 'gelu_new' if name == 'gelu' else name,
      'is_gated_act': name != activation,
  }


def _scales_logits(config: base_config.HfConfig) -> bool:
  """Whether logits are divided by sqrt(d_model).

  mT5 never does. Transformers 5 says so in `scale_decoder_outputs`, and then
  writes `tie_word_embeddings: true` for every model; before, tying and scaling
  were one option.
  """
  if config['model_type'] == 'mt5':
    return False
  tied, scaled = (
      base_config.boolean(name, config.get(name, True))
      for name in ('tie_word_embeddings', 'scale_decoder_outputs')
  )
  return tied and scaled


def to_hf(
    config: t5.T5Config, hf_config: base_config.HfConfig
) -> dict[str, Any]:
  """Returns the contents of `config.json`, right for transformers 4 and 5.

  Args:
    config: The model.
    hf_config: The `config.json` of the imported base, whose ids `config` has.

  Raises:
    errors.UserError: For activations that transformers' T5 does not have.
  """
  del hf_config  # `from_hf` takes no other ids.
  activations = tuple(config.mlp_activations)
  if activations not in _FEED_FORWARD:
    raise errors.UserError(
        f'mlp_activations = {activations} have no counterpart in transformers.',
        where='t5.T5Config.mlp_activations',
        remedy=f'Models with one of {list(_FEED_FORWARD)} can be exported.',
    )
  kind = 'umt5' if config.relative_bias_per_layer else 't5'
  return {
      'architectures': [f'{kind.upper()}ForConditionalGeneration'],
      'model_type': kind,
      **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
      'num_decoder_layers': config.num_decoder_layers,
      'feed_forward_proj': _FEED_FORWARD[activations],
      'layer_norm_epsilon': 1e-6,
      'dropout_rate': config.dropout_rate,
      **{name: getattr(config, name) for name in _POSITIONS},
      'is_encoder_decoder': True,
      'tie_word_embeddings': config.logits_via_embedding,
      **GENERATION_CONFIG,
      'use_cache': True,
      'torch_dtype': 'float32',
  }


def to_gin(
    config: t5.T5Config, vocabulary: str, ids: token_ids.TokenIds
) -> str:
  """Returns a gin file of the model.

  Args:
    config: The model.
    vocabulary: Path of the tokenizer's file; empty if it has none.
    ids: What sequences end with.
  """
  imports = ['import seqio', '']
  if vocabulary.endswith('.json'):
    imports = ['from moe_peft.data import vocabularies']
    ends = ids.ends or (GENERATION_CONFIG['eos_token_id'],)
    bindings = base_config.tokenizer_bindings(vocabulary, ends, ids.num_ids)
  elif vocabulary or config.vocab_size != _NUM_BYTES:
    file = repr(vocabulary) if vocabulary else '%gin.REQUIRED'
    bindings = [
        f'VOCABULARY_FILE = {file}',
        'VOCABULARY = @seqio.SentencePieceVocabulary()',
        'seqio.SentencePieceVocabulary.sentencepiece_model_file = '
        '%VOCABULARY_FILE',
    ]
  else:
    bindings = [
        'VOCABULARY = @seqio.ByteVocabulary()',
        'seqio.ByteVocabulary.extra_ids = 125',
    ]
  fields = (
      *_SIZES.values(), 'num_decoder_layers', 'mlp_activations',
      'logits_via_embedding', 'relative_bias_per_layer', *_POSITIONS,
  )
  return base_config.to_gin('t5', config, fields, imports, bindings)


def plan(
    tensors: folders.Tensors,
    config: t5.T5Config,
    layout: str,
    hf_config: base_config.HfConfig,
) -> tuple[dict[str, lazy_arrays.LazyArray], t5.T5Config]:
  """Returns the parameters by path, and the final configuration.

  The output layer has four cases: tied and scaled (T5 1.0) there is none; a
  head of its own is taken over; without a head of its own but unscaled it is
  the embedding's; scaled with a head of its own, which transformers allows, the
  scale goes into the head.

  Args:
    tensors: The tensors of the folder.
    config: What `from_hf` returned.
    layout: One of `entries.LAYOUTS`.
    hf_config: Contents of `config.json`; nothing more is read from it.

  Raises:
    errors.UserError: For missing, unused and mis-shaped tensors, and for two
      embeddings that differ.
  """
  del hf_config
  base_config.check_depth(tensors, 'num_layers', config.num_encoder_layers)
  base_config.check_depth(
      tensors, 'num_decoder_layers', config.num_decoder_layers
  )
  shared, head = t5_names.HF_EMBEDDINGS[0], t5_names.HF_LOGITS
  own_head = head in tensors.shapes
  expected = entries_lib.source_shapes(t5_names.entries(config, layout))
  width = expected.pop(shared)
  expected.pop(head, None)
  aliases = [x for x in t5_names.HF_EMBEDDINGS if x in tensors.shapes]
  aliases = aliases or [shared]
  expected |= dict.fromkeys([*aliases, head] if own_head else aliases, width)
  folders.check_shapes(tensors, expected, {t5_names.HF_IGNORED})
  embedding = tensors[aliases[0]]
  for name in aliases[1:]:
    if not np.array_equal(tensors[name], embedding):
      raise errors.UserError(
          f'{name} differs from {aliases[0]}, but a T5 shares one embedding.',
          where=name,
      )
  scaled = config.logits_via_embedding and own_head and not np.array_equal(
      tensors[head], embedding
  )
  if scaled:
    config = config.replace(logits_via_embedding=False)
  del embedding
  renamed = {shared: aliases[0], head: head if own_head else aliases[0]}

  def read(name):
    array = tensors[renamed.get(name, name)]
    if name == head and scaled:
      return array.astype(np.float32) * np.float32(config.emb_dim**-0.5)
    return array

  entries = t5_names.entries(config, layout)
  return entries_lib.lazy_params(entries, read, tensors.dtype), config
