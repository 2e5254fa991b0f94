# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decoders: `config.json` and tensors as models/decoder.py has them."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import families
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import rope_config
from moe_peft.hf import token_ids
from moe_peft.models import decoder_config

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
# The norms of a layer, by where they stand.
_NORMS = {
    'pre': {
        'pre_self_attention_layer_norm': 'input_layernorm',
        'pre_mlp_layer_norm': 'post_attention_layernorm',
    },
    'post': {
        'post_self_attention_layer_norm': 'post_attention_layernorm',
        'post_mlp_layer_norm': 'post_feedforward_layernorm',
    },
    'sandwich': {
        'pre_self_attention_layer_norm': 'input_layernorm',
        'post_self_attention_layer_norm': 'post_attention_layernorm',
        'pre_mlp_layer_norm': 'pre_feedforward_layernorm',
        'post_mlp_layer_norm': 'post_feedforward_layernorm',
    },
}


def from_hf(
    config: base_config.HfConfig, layout: str = 't5'
) -> decoder_config.DecoderConfig:
  """Reads the sizes and options of a model from its `config.json`.

  Args:
    config: Contents of the file, as transformers 4 or 5 writes it.
    layout: 't5' (layers one by one) or 'scan'.

  Returns:
    The configuration, checked.

  Raises:
    errors.UserError: If it is not a model that models/decoder.py computes.
  """
  if layout == 'unrolled':
    raise errors.UserError(
        "--layout unrolled is that of T5X's scalable_t5.", where='--layout',
        remedy='A decoder has the layouts t5 (layers one by one) and scan.',
    )
  fields = families.fields_of(config)
  sizes = base_config.sizes(fields.config, _SIZES)
  heads = sizes['num_heads']
  options = {
      'num_kv_heads': fields.integer('num_key_value_heads', heads),
      'head_dim': fields.integer('head_dim', sizes['emb_dim'] // heads),
      'mlp_activations': (families.activation(fields), 'linear'),
      'norm_epsilon': fields.number('rms_norm_eps'),
      'logits_via_embedding': fields.boolean('tie_word_embeddings'),
      'scan_layers': layout == 'scan',
      **rope_config.options(fields),
      **families.FAMILIES[config['model_type']].options(fields),
  }
  if heads % options['num_kv_heads']:
    raise base_config.unsupported(
        'num_key_value_heads', options['num_kv_heads'],
        f'a divisor of num_attention_heads = {heads} there',
    )
  result = decoder_config.DecoderConfig(**sizes, **options)
  decoder_config.check_config(result)
  return result


def to_hf(
    config: decoder_config.DecoderConfig, hf_config: base_config.HfConfig
) -> dict[str, Any]:
  """Returns a `config.json` that transformers 4 and 5 read alike.

  Args:
    config: The model.
    hf_config: The `config.json` of the imported base, of either version; empty
      if it has none.

  Raises:
    errors.UserError: If no family has such a model.
  """
  # What is written has another type, and no code of the base beside it. Version
  # 5 would take `dtype`, its own spelling, for `torch_dtype`.
  kept = {k: v for k, v in hf_config.items() if k not in ('dtype', 'auto_map')}
  written = kept or _written(config)
  fields = families.fields_of(written)
  name = families.FAMILIES[written['model_type']].name
  return {
      **written,
      **rope_config.both_spellings(fields),
      'architectures': [f'{name}ForCausalLM'],
      'torch_dtype': 'float32',
  }


def _written(config: decoder_config.DecoderConfig) -> dict[str, Any]:
  """A `config.json` of the first family that has such a model."""
  layout = 'scan' if config.scan_layers else 't5'
  same = (  # What changes how it runs, not what it is.
      'dtype', 'dropout_rate', 'remat_policy', 'attention',
      'float32_attention_logits',
  )
  for kind in families.FAMILIES:
    written = {
        'model_type': kind,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_dim,
        'rms_norm_eps': config.norm_epsilon,
        'rope_theta': config.rope_theta,
        'attention_bias': config.attention_bias == 'qkvo',
        'mlp_bias': config.mlp_bias,
        'tie_word_embeddings': config.logits_via_embedding,
    }
    found = from_hf(written, layout)
    if found.replace(**{x: getattr(config, x) for x in same}) == config:
      return written
  raise errors.UserError(
      'No family of transformers has a decoder with these options.',
      where='decoder_config.DecoderConfig',
      remedy='Train a base that `python -m moe_peft hf import` has made.',
  )


def to_gin(
    config: decoder_config.DecoderConfig,
    vocabulary: str,
    ids: token_ids.TokenIds,
) -> str:
  """Returns a gin file of the model.

  Args:
    config: The model.
    vocabulary: Path of its `tokenizer.json`; empty if it has none.
    ids: What rows begin and end with.
  """
  begins = 'the token of bos_id' if ids.begin is not None else 'the text itself'
  bindings = [
      *base_config.tokenizer_bindings(vocabulary, ids.ends, ids.num_ids),
      f'# Rows begin with {begins}: bos_id = {ids.begin}.',
      f'BOS_ID = {ids.begin}',
  ]
  imports = ['from moe_peft.data import vocabularies']
  fields = [*_SIZES.values(), *_changed(config, ('dtype', 'scan_layers'))]
  fields = list(dict.fromkeys(fields))
  if config.rope_scaling is not None:
    fields.remove('rope_scaling')
    scaling = config.rope_scaling
    imports.append('from moe_peft.models import rotary')
    bindings += [
        'decoder_config.DecoderConfig.rope_scaling = @rotary.Scaling()',
        'rotary.Scaling:',
        f'  kind = {scaling.kind!r}',
        *(f'  {x} = {getattr(scaling, x)!r}' for x in _changed(scaling)),
    ]
  return base_config.to_gin('decoder', config, fields, imports, bindings)


def _changed(options: Any, without: Sequence[str] = ()) -> list[str]:
  """Names of the fields that do not have their defaults."""
  return [
      field.name
      for field in dataclasses.fields(options)
      if field.default is not dataclasses.MISSING
      and field.name not in without
      and getattr(options, field.name) != field.default
  ]


def entries(
    config: decoder_config.DecoderConfig, layout: str
) -> list[entries_lib.Entry]:
  """Returns all parameters of a decoder; a tied output layer is none."""
  tensors = _layer_tensors(config, layout)
  return [
      *entries_lib.ends(
          config.vocab_size, config.emb_dim, HF_EMBEDDING,
          None if config.logits_via_embedding else HF_LOGITS,
      ),
      entries_lib.plain(
          'decoder/decoder_norm/scale', 'model.norm.weight', (config.emb_dim,)
      ),
      *entries_lib.layered(tensors, 'decoder', config.num_layers, layout),
  ]


def _layer_tensors(
    config: decoder_config.DecoderConfig, layout: str
) -> Iterator[entries_lib.Entry]:
  """Yields the tensors of a layer; `{layer}` stands for its number."""
  prefix, embed = 'model.layers.{layer}', config.emb_dim
  for name, theirs in _PROJECTIONS.items():
    grouped = name in ('key', 'value')
    heads = config.num_kv_heads if grouped else config.num_heads
    path, source = f'self_attention/{name}', f'{prefix}.self_attn.{theirs}'
    size = (heads, config.head_dim)
    yield entries_lib.projection(path, source, embed, size, layout)
    if name[0] in config.attention_bias:
      yield entries_lib.bias(
          path, source, (embed,) if name == 'out' else size, layout
      )
    if config.qk_norm != 'none' and name in ('query', 'key'):
      joined = config.qk_norm == 'joined'
      yield entries_lib.plain(
          f'{path}_norm/scale', f'{prefix}.self_attn.{name[0]}_norm.weight',
          (heads * config.head_dim if joined else config.head_dim,),
      )
  yield from entries_lib.mlp(_MLP, f'{prefix}.mlp', embed, config.mlp_dim)
  if config.mlp_bias:
    for name, theirs in _MLP.items():
      size = embed if name == 'wo' else config.mlp_dim
      yield entries_lib.bias(
          f'mlp/{name}', f'{prefix}.mlp.{theirs}', (size,), layout
      )
  for name, theirs in _NORMS[config.norms].items():
    yield entries_lib.plain(
        f'{name}/scale', f'{prefix}.{theirs}.weight', (embed,)
    )


def plan(
    tensors: folders.Tensors,
    config: decoder_config.DecoderConfig,
    layout: str,
    hf_config: base_config.HfConfig,
) -> tuple[
    dict[str, lazy_arrays.LazyArray], decoder_config.DecoderConfig
]:
  """Returns the parameters by path, and the configuration of `from_hf`.

  Args:
    tensors: The tensors of the folder.
    config: What `from_hf` returned.
    layout: As in `from_hf`.
    hf_config: Contents of `config.json`.

  Raises:
    errors.UserError: For missing, unused and mis-shaped tensors.
  """
  base_config.check_depth(tensors, 'num_hidden_layers', config.num_layers)
  family = families.FAMILIES[hf_config['model_type']]
  found = entries(config, layout)
  ignored = {
      f'model.layers.{i}.self_attn.rotary_emb.inv_freq'
      for i in range(config.num_layers)
  }
  expected, rows = joined(entries_lib.source_shapes(found), family)
  if config.logits_via_embedding:
    tied = base_config.tied(tensors, HF_EMBEDDING, HF_LOGITS)
    expected[tied] = expected.pop(HF_EMBEDDING)
    rows[HF_EMBEDDING] = tied, ...
    ignored.add(HF_LOGITS)
  folders.check_shapes(tensors, expected, ignored)
  offset = 0.0 if tensors.whole_norms else family.norm_offset

  def read(name):
    source, part = rows.get(name, (name, ...))
    array = tensors[source][part]
    if offset and name.endswith('norm.weight'):
      return array.astype(np.float32) + np.float32(offset)
    return array

  params = entries_lib.lazy_params(found, read, tensors.dtype)
  if offset:  # In bfloat16 the sum would lose digits of what is stored.
    params |= {
        path: dataclasses.replace(array, dtype=np.dtype(np.float32))
        for path, array in params.items()
        if path.endswith('norm/scale')
    }
  return params, config


def joined(
    shapes: Mapping[str, tuple[int, ...]], family: families.Family
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, slice]]]:
  """What the files of a family hold in the place of separate tensors.

  Args:
    shapes: Shapes of the separate tensors by name.
    family: Family of the model.

  Returns:
    Shapes by name of what is in the files, and for each tensor that is a part
    of one, its name and the rows.
  """
  expected = dict(shapes)
  rows = {}
  for whole, parts in family.joined.items():
    for name in shapes:
      prefix, _, module = name.removesuffix('.weight').rpartition('.')
      if module not in parts:
        continue
      source = f'{prefix}.{whole}.weight'
      count, *others = expected.pop(name)
      start = expected.get(source, (0,))[0]
      expected[source] = (start + count, *others)
      rows[name] = source, slice(start, start + count)
  return expected, rows
