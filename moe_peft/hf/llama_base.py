# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA's `config.json` and tensors as models/llama.py has them."""

from collections.abc import Iterator
from typing import Any

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.models import llama

HF_EMBEDDING = 'model.embed_tokens.weight'
HF_LOGITS = 'lm_head.weight'
TOKENIZER_FILES = ('tokenizer.json',)
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
  base_config.check_fixed(config, _FIXED)
  heads = sizes['num_heads']
  result = llama.LlamaConfig(
      **sizes,
      num_kv_heads=base_config.integer(
          'num_key_value_heads', _given(config, 'num_key_value_heads', heads)
      ),
      head_dim=base_config.integer(
          'head_dim', _given(config, 'head_dim', sizes['emb_dim'] // heads)
      ),
      rope_theta=_rope_theta(config),
      norm_epsilon=base_config.number(
          'rms_norm_eps', config.get('rms_norm_eps', 1e-6)
      ),
      logits_via_embedding=base_config.boolean(
          'tie_word_embeddings', config.get('tie_word_embeddings', False)
      ),
      scan_layers=layout == 'scan',
  )
  llama.check_config(result)
  return result


def _given(config: base_config.HfConfig, name: str, default: Any) -> Any:
  """A field, or its default where it is absent or null."""
  value = config.get(name)
  return default if value is None else value


def _rope_theta(config: base_config.HfConfig) -> float:
  # Transformers 5 keeps all of it in one field.
  name = 'rope_parameters' if config.get('rope_parameters') else 'rope_scaling'
  rope = config.get(name) or {}
  if not isinstance(rope, dict):
    raise base_config.unsupported(name, rope, 'an object there')
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default':
    raise base_config.unsupported(
        'rope_type', kind, 'rotary positions without scaling'
    )
  theta = _given(rope, 'rope_theta', _given(config, 'rope_theta', 10000.0))
  return base_config.number('rope_theta', theta, minimum=1.0)


def to_hf(
    config: llama.LlamaConfig, hf_config: base_config.HfConfig
) -> dict[str, Any]:
  """Returns the contents of `config.json`, right for transformers 4 and 5."""
  kept = dict(hf_config)
  theta = config.rope_theta
  return kept | {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
      'num_key_value_heads': config.num_kv_heads,
      'head_dim': config.head_dim,
      'rms_norm_eps': config.norm_epsilon,
      'hidden_act': 'silu',
      'tie_word_embeddings': config.logits_via_embedding,
      'rope_theta': theta,
      'rope_scaling': None,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': theta},
      'torch_dtype': 'float32',
  }


def to_gin(
    config: llama.LlamaConfig,
    vocabulary: str,
    hf_config: base_config.HfConfig,
) -> str:
  """Returns a gin file of the model.

  Args:
    config: The model.
    vocabulary: Path of its `tokenizer.json`; empty if it has none.
    hf_config: Contents of `config.json`, which has the ids that begin and
      end a sequence.

  Raises:
    errors.UserError: If one of them is no id of the vocabulary, or the end of
      a sequence is padding.
  """
  eos = _special_id(config, hf_config, 'eos_token_id')
  if eos == 0:
    raise errors.UserError(
        f'{base_config.FILE} has eos_token_id 0. SeqIO pads with 0, and '
        'padding is not trained, so no answer would end.',
        where='eos_token_id',
        remedy='Write the id of another special token there, for example '
        'the end of a turn.',
    )
  bindings = base_config.tokenizer_bindings(vocabulary, eos)
  bos = _special_id(config, hf_config, 'bos_token_id')
  if bos is not None:
    bindings.append(f'decoder_only.DecoderOnlyModel.bos_id = {bos}')
  fields = (
      *_SIZES.values(), 'num_kv_heads', 'head_dim', 'rope_theta',
      'norm_epsilon', 'logits_via_embedding',
  )
  imports = [
      'from moe_peft.data import vocabularies',
      'from moe_peft.models import decoder_only',
  ]
  return base_config.to_gin('llama', config, fields, imports, bindings)


def _special_id(
    config: llama.LlamaConfig,
    hf_config: base_config.HfConfig,
    name: str,
) -> int | None:
  """An id that `config.json` names, the first of several; None for none."""
  value = hf_config.get(name)
  value = value[0] if isinstance(value, list) and value else value
  if value is None:
    return None
  return base_config.integer(name, value, 0, config.vocab_size - 1)


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
  base_config.check_depth(tensors, 'num_hidden_layers', config.num_layers)
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
