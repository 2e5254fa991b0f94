# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA's `config.json` and tensors as models/llama.py has them."""

from collections.abc import Iterator

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.models import llama

HF_EMBEDDING = 'model.embed_tokens.weight'
HF_LOGITS = 'lm_head.weight'
TOKENIZER_FILE = 'tokenizer.json'
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


def from_hf(
    config: base_config.HfConfig, layout: str = 't5'
) -> llama.LlamaConfig:
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
        "--layout unrolled is that of T5X's scalable_t5.", where='--layout',
        remedy='A LLaMA has the layouts t5 (layers one by one) and scan.',
    )
  sizes = base_config.sizes(config, _SIZES)
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise base_config.unsupported(name, config[name], f'{value!r} there')
  # Transformers 5 keeps all of it in one field.
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default':
    raise base_config.unsupported(
        'rope_type', kind, 'rotary positions without scaling'
    )
  heads = sizes['num_heads']
  result = llama.LlamaConfig(
      **sizes,
      num_kv_heads=config.get('num_key_value_heads') or heads,
      head_dim=config.get('head_dim') or sizes['emb_dim'] // heads,
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
    config: llama.LlamaConfig,
    vocabulary: str,
    hf_config: base_config.HfConfig,
) -> str:
  """Returns a gin file of the model.

  Args:
    config: The model.
    vocabulary: Path of its `tokenizer.json`; empty if it has none.
    hf_config: Contents of `config.json`, which has the end of a sequence.

  Raises:
    errors.UserError: If the end of a sequence is no id.
  """
  eos = hf_config.get('eos_token_id')
  eos = eos[0] if isinstance(eos, list) and eos else eos
  if eos is not None:
    base_config.integer('eos_token_id', eos, minimum=0)
  required = '%gin.REQUIRED'
  bindings = [
      f'VOCABULARY_FILE = {repr(vocabulary) if vocabulary else required}',
      'VOCABULARY = @vocabularies.TokenizerVocabulary()',
      'vocabularies.TokenizerVocabulary:',
      '  tokenizer_file = %VOCABULARY_FILE',
      f'  eos_id = {required if eos is None else eos}',
  ]
  fields = (
      *_SIZES.values(), 'num_kv_heads', 'head_dim', 'rope_theta',
      'norm_epsilon', 'logits_via_embedding',
  )
  imports = ['from moe_peft.data import vocabularies']
  return base_config.to_gin('llama', config, fields, imports, bindings)


def entries(config: llama.LlamaConfig, layout: str) -> list[entries_lib.Entry]:
  """Returns all parameters of a LLaMA; a tied output layer is none."""
  width = (config.vocab_size, config.emb_dim)
  found = [
      entries_lib.plain(entries_lib.EMBEDDING, HF_EMBEDDING, width),
      entries_lib.plain(
          'decoder/decoder_norm/scale', 'model.norm.weight', width[1:]
      ),
  ]
  if not config.logits_via_embedding:
    path = entries_lib.LOGITS.removesuffix('/kernel')
    module = HF_LOGITS.removesuffix('.weight')
    found.append(entries_lib.dense(path, module, width[::-1]))
  tensors = _layer_tensors(config, layout)
  found.extend(
      entries_lib.layered(tensors, 'decoder', config.num_layers, layout)
  )
  return found


def _layer_tensors(
    config: llama.LlamaConfig, layout: str
) -> Iterator[entries_lib.Entry]:
  """Yields the tensors of a layer; `{layer}` stands for its number."""
  prefix, embed = 'model.layers.{layer}', config.emb_dim
  for name, theirs in _PROJECTIONS.items():
    grouped = name in ('key', 'value')
    heads = config.num_kv_heads if grouped else config.num_heads
    yield entries_lib.projection(
        f'self_attention/{name}', f'{prefix}.self_attn.{theirs}', embed,
        (heads, config.head_dim), layout,
    )
  yield from entries_lib.mlp(_MLP, f'{prefix}.mlp', embed, config.mlp_dim)
  for name, theirs in _NORMS.items():
    yield entries_lib.plain(
        f'{name}/scale', f'{prefix}.{theirs}.weight', (embed,)
    )


def plan(
    tensors: folders.Tensors, config: llama.LlamaConfig, layout: str
) -> tuple[dict[str, lazy_arrays.LazyArray], llama.LlamaConfig]:
  """Returns the parameters by path, and the configuration of `from_hf`.

  Raises:
    errors.UserError: For missing, unused and mis-shaped tensors.
  """
  found = entries(config, layout)
  ignored = {
      f'model.layers.{i}.self_attn.rotary_emb.inv_freq'
      for i in range(config.num_layers)
  }
  if config.logits_via_embedding:
    # A tied output layer is written to some files all the same; transformers
    # reads the embedding then.
    ignored.add(HF_LOGITS)
  folders.check_shapes(tensors, entries_lib.source_shapes(found), ignored)
  read = tensors.__getitem__
  return entries_lib.lazy_params(found, read, tensors.dtype), config
