# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`config.json` of the T5 family, to and from `t5.T5Config`.

We write `config.json` ourselves. The writer of transformers 5 records
`tie_word_embeddings: true` for T5 1.1, with which older versions tie and scale
the output layer: wrong by whole logits.
"""

from collections.abc import Mapping
from typing import Any

from moe_peft import errors
from moe_peft.models import t5

HfConfig = Mapping[str, Any]

# `gelu_new` is the tanh approximation, which flax.linen calls gelu. The plain
# `gelu` of transformers is the exact one, which we do not have.
_ACTIVATIONS = {
    'relu': ('relu',),
    'silu': ('silu',),
    'gated-gelu': ('gelu', 'linear'),
    'gated-silu': ('silu', 'linear'),
    'gated-relu': ('relu', 'linear'),
}
_SIZES = {
    'vocab_size': 'vocab_size',
    'd_model': 'emb_dim',
    'num_heads': 'num_heads',
    'num_layers': 'num_encoder_layers',
    'd_kv': 'head_dim',
    'd_ff': 'mlp_dim',
}


def from_hf(config: HfConfig, layout: str = 't5') -> t5.T5Config:
  """Reads the sizes and options of a model from its `config.json`.

  Args:
    config: Contents of the file.
    layout: 't5', 'scan' or 'unrolled'; see `names.py`.

  Returns:
    The configuration. `logits_via_embedding` says that the output layer is
    tied and scaled; a tied output layer that is not scaled becomes a
    `logits_dense` of its own.

  Raises:
    errors.UserError: If it is not a model that `models/t5.py` computes.
  """
  missing = [name for name in _SIZES if name not in config]
  if missing:
    raise errors.UserError(
        f'config.json lacks {", ".join(missing)}; fetch the folder again.'
    )
  activation = config.get('feed_forward_proj', 'relu')
  if activation not in _ACTIVATIONS:
    raise errors.UserError(
        f'config.json has feed_forward_proj {activation!r}; supported are '
        f'{", ".join(_ACTIVATIONS)}.'
    )
  epsilon = config.get('layer_norm_epsilon', 1e-6)
  if epsilon != 1e-6:
    raise errors.UserError(
        f'config.json has layer_norm_epsilon {epsilon}; T5 uses 1e-6, and '
        'models/t5.py computes with that.'
    )
  result = t5.T5Config(
      **{ours: config[theirs] for theirs, ours in _SIZES.items()},
      num_decoder_layers=config.get('num_decoder_layers')
      or config['num_layers'],
      mlp_activations=_ACTIVATIONS[activation],
      dropout_rate=config.get('dropout_rate', 0.1),
      logits_via_embedding=_scales_logits(config),
      scan_layers=layout == 'scan',
      relative_attention_num_buckets=config.get(
          'relative_attention_num_buckets', 32
      ),
      relative_attention_max_distance=config.get(
          'relative_attention_max_distance', 128
      ),
  )
  t5.check_config(result)
  return result


def _scales_logits(config: HfConfig) -> bool:
  """Whether logits are divided by sqrt(d_model).

  mT5 never does. Transformers 5 says so in `scale_decoder_outputs`, and then
  writes `tie_word_embeddings: true` for every model; before, tying and scaling
  were one option.
  """
  if config['model_type'] == 'mt5':
    return False
  tied = config.get('tie_word_embeddings', True)
  return tied and config.get('scale_decoder_outputs', True)


def to_hf(config: t5.T5Config) -> dict[str, Any]:
  """Returns the contents of `config.json`, right for transformers 4 and 5.

  Raises:
    errors.UserError: For activations that transformers' T5 does not have.
  """
  names = {v: k for k, v in _ACTIVATIONS.items()}
  activations = tuple(config.mlp_activations)
  if activations not in names:
    raise errors.UserError(
        f't5.T5Config.mlp_activations = {activations} has no counterpart in '
        f'transformers; export needs one of {list(names)}.'
    )
  return {
      'architectures': ['T5ForConditionalGeneration'],
      'model_type': 't5',
      **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
      'num_decoder_layers': config.num_decoder_layers,
      'feed_forward_proj': names[activations],
      'layer_norm_epsilon': 1e-6,
      'dropout_rate': config.dropout_rate,
      'relative_attention_num_buckets': config.relative_attention_num_buckets,
      'relative_attention_max_distance': config.relative_attention_max_distance,
      'is_encoder_decoder': True,
      'tie_word_embeddings': config.logits_via_embedding,
      'decoder_start_token_id': 0,
      'pad_token_id': 0,
      'eos_token_id': 1,
      'use_cache': True,
      'torch_dtype': 'float32',
  }


GENERATION_CONFIG = {
    'decoder_start_token_id': 0,
    'eos_token_id': 1,
    'pad_token_id': 0,
}


def to_gin(config: t5.T5Config, vocabulary: str) -> str:
  """Returns a gin file of the model, like those under gin/models/.

  Args:
    config: The model.
    vocabulary: Path of a SentencePiece model; empty for bytes.
  """
  if vocabulary:
    lines = [
        f'VOCABULARY_FILE = {vocabulary!r}',
        'VOCABULARY = @seqio.SentencePieceVocabulary()',
        'seqio.SentencePieceVocabulary.sentencepiece_model_file = '
        '%VOCABULARY_FILE',
    ]
  else:
    lines = [
        'VOCABULARY = @seqio.ByteVocabulary()',
        'seqio.ByteVocabulary.extra_ids = 125',
    ]
  names = list(_SIZES.values()) + [
      'num_decoder_layers',
      'mlp_activations',
      'logits_via_embedding',
      'relative_attention_num_buckets',
      'relative_attention_max_distance',
  ]
  fields = [f'  {name} = {getattr(config, name)!r}' for name in names]
  return '\n'.join([
      '# Written by `python -m moe_peft hf import`.',
      '# Provides: MODULE, MODEL, VOCABULARY.',
      '# Requires: ADAPTER_RULES, LOSS_FACTORS.',
      'from __gin__ import dynamic_registration',
      '',
      'import seqio',
      '',
      'from moe_peft.models import t5',
      '',
      "include 'gin/models/t5_architecture.gin'",
      '',
      *lines,
      f'SCAN_LAYERS = {config.scan_layers}',
      't5.T5Config:',
      *fields,
      '',
  ])
