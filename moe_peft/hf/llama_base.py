# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA's `config.json` and tensors as models/llama.py has them."""

from collections.abc import Iterator, Mapping
from typing import Any

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import names
from moe_peft.models import llama

HF_EMBEDDING = 'model.embed_tokens.weight'
HF_LOGITS = 'lm_head.weight'
_SIZES = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'emb_dim',
    'num_attention_heads': 'num_heads',
    'num_hidden_layers': 'num_layers',
    'intermediate_size': 'mlp_dim',
}
_PROJECTIONS = {
    'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'o_proj'
}
_MLP = {'wi_0': 'gate_proj', 'wi_1': 'up_proj', 'wo': 'down_proj'}
_NORMS = {
    'pre_self_attention_layer_norm': 'input_layernorm',
    'pre_mlp_layer_norm': 'post_attention_layernorm',
}
# What models/llama.py computes; elsewhere these fields have other values.
_FIXED = {
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'pretraining_tp': 1,
}


def from_hf(config: Mapping[str, Any], layout: str = 't5') -> llama.LlamaConfig:
  """Reads the sizes and options of a model from its `config.json`.

  Args:
    config: Contents of the file, as transformers 4 or 5 writes it.
    layout: 't5' (layers one by one) or 'scan'.

  Returns:
    The configuration, checked.

  Raises:
    errors.UserError: If it is not a model that `models/llama.py` computes.
  """
  if layout == 'unrolled':
    raise errors.UserError(
        "--layout unrolled is that of T5X's scalable_t5; a LLaMA has t5 "
        '(layers one by one) or scan.'
    )
  missing = [name for name in _SIZES if name not in config]
  if missing:
    raise errors.UserError(
        f'config.json lacks {", ".join(missing)}; fetch the folder again.'
    )
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise errors.UserError(
          f'config.json has {name} {config[name]!r}; models/llama.py computes '
          f'with {value!r} only.'
      )
  # Transformers 5 keeps all of it in one field.
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default':
    raise errors.UserError(
        f'config.json scales rotary positions (rope_type {kind!r}); '
        'models/llama.py has the unscaled ones only.'
    )
  heads = config['num_attention_heads']
  result = llama.LlamaConfig(
      **{ours: config[theirs] for theirs, ours in _SIZES.items()},
      num_kv_heads=config.get('num_key_value_heads') or heads,
      head_dim=config.get('head_dim') or config['hidden_size'] // heads,
      rope_theta=float(
          rope.get('rope_theta') or config.get('rope_theta') or 10000.0
      ),
      norm_epsilon=config.get('rms_norm_eps', 1e-6),
      logits_via_embedding=config.get('tie_word_embeddings', False),
      scan_layers=layout == 'scan',
  )
  llama.check_config(result)
  return result


def to_gin(
    config: llama.LlamaConfig, vocabulary: str, hf_config: Mapping[str, Any]
) -> str:
  """Returns a gin file of the model, like those under gin/models/.

  Args:
    config: The model.
    vocabulary: Path of its `tokenizer.json`; empty if it has none.
    hf_config: Contents of `config.json`; the end of a sequence is there.
  """
  fields = list(_SIZES.values()) + [
      'num_kv_heads',
      'head_dim',
      'rope_theta',
      'norm_epsilon',
      'logits_via_embedding',
  ]
  eos = hf_config.get('eos_token_id')
  eos = eos[0] if isinstance(eos, list) else eos
  return '\n'.join([
      '# Written by `python -m moe_peft hf import`.',
      '# Provides: MODULE, MODEL, VOCABULARY.',
      '# Requires: ADAPTER_RULES, LOSS_FACTORS.',
      'from __gin__ import dynamic_registration',
      '',
      'from moe_peft.data import vocabularies',
      'from moe_peft.models import llama',
      '',
      "include 'gin/models/llama_architecture.gin'",
      '',
      f'VOCABULARY_FILE = {vocabulary!r}' if vocabulary
      else 'VOCABULARY_FILE = %gin.REQUIRED',
      'VOCABULARY = @vocabularies.TokenizerVocabulary()',
      'vocabularies.TokenizerVocabulary:',
      '  tokenizer_file = %VOCABULARY_FILE',
      f'  eos_id = {"%gin.REQUIRED" if eos is None else eos}',
      f'SCAN_LAYERS = {config.scan_layers}',
      'llama.LlamaConfig:',
      *(f'  {name} = {getattr(config, name)!r}' for name in fields),
      '',
  ])


def entries(config: llama.LlamaConfig, layout: str) -> list[names.Entry]:
  """Returns all parameters but the embedding and the output layer."""
  width = (config.emb_dim,)
  found = [
      names.Entry('decoder/decoder_norm/scale', ('model.norm.weight',),
                  width, width)
  ]
  for entry in _layer_tensors(config, layout == 'scan'):
    found.extend(names.layered(entry, 'decoder', config.num_layers, layout))
  return found


def _layer_tensors(
    config: llama.LlamaConfig, split_heads: bool
) -> Iterator[names.Entry]:
  prefix = 'model.layers.{layer}'
  embed = config.emb_dim
  for name, theirs in _PROJECTIONS.items():
    own = name in ('key', 'value')
    heads = (
        config.num_kv_heads if own else config.num_heads, config.head_dim
    )
    joined = heads[0] * heads[1]
    shape = (joined, embed) if name == 'out' else (embed, joined)
    full = (*heads, embed) if name == 'out' else (embed, *heads)
    yield names.dense(
        f'self_attention/{name}',
        f'{prefix}.self_attn.{theirs}',
        shape,
        full if split_heads else shape,
    )
  for name, theirs in _MLP.items():
    shape = (embed, config.mlp_dim)
    shape = shape[::-1] if name == 'wo' else shape
    yield names.dense(f'mlp/{name}', f'{prefix}.mlp.{theirs}', shape, shape)
  for name, theirs in _NORMS.items():
    yield names.Entry(
        f'{name}/scale', (f'{prefix}.{theirs}.weight',), (embed,), (embed,)
    )


def plan(
    tensors: folders.Tensors, config: llama.LlamaConfig, layout: str
) -> tuple[folders.Readers, llama.LlamaConfig]:
  """Plans the import of a model.

  Args:
    tensors: The tensors of the folder.
    config: What `from_hf` returned.
    layout: 't5' or 'scan'.

  Returns:
    Shape and reader by path of models/llama.py, and the configuration.

  Raises:
    errors.UserError: For missing, unused and mis-shaped tensors.
  """
  found = entries(config, layout)
  expected = {
      source: entry.hf_shape for entry in found for source in entry.sources
  }
  width = (config.vocab_size, config.emb_dim)
  expected[HF_EMBEDDING] = width
  # A tied output layer is written to some files all the same; transformers
  # reads the embedding then.
  ignored = {HF_LOGITS} if config.logits_via_embedding else set()
  if not config.logits_via_embedding:
    expected[HF_LOGITS] = width
  ignored |= {
      f'model.layers.{i}.self_attn.rotary_emb.inv_freq'
      for i in range(config.num_layers)
  }
  folders.check_shapes(tensors.shapes, expected, ignored)
  readers = {names.EMBEDDING: (width, lambda: tensors[HF_EMBEDDING])}
  if not config.logits_via_embedding:
    readers[names.LOGITS] = (width[::-1], lambda: tensors[HF_LOGITS].T)
  readers |= names.readers(found, tensors)
  return readers, config
