# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Families of decoders: what each `config.json` means for models/decoder.py.

A family is a row of `FAMILIES`: the defaults of its class in transformers for
fields that a file may leave out, and a function from the other fields to
options of `DecoderConfig`. All families share the names of tensors, but for
matrices that one of them stores joined, and the names of norms.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from moe_peft.hf import base_config
from moe_peft.hf import rope_config

_LAYER_TYPES = {rope_config.FULL: 'global', rope_config.SLIDING: 'local'}
# `gelu` is the tanh approximation here, as in Flax; the exact one is not.
_ACTIVATIONS = {
    'silu': 'silu', 'relu': 'relu', 'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
}


@dataclasses.dataclass(frozen=True)
class Family:
  """What tells a family from the others.

  Attributes:
    name: Name of the class in transformers, without `ForCausalLM`.
    options: Makes of the fields of a file those of `DecoderConfig` that differ
      from its defaults.
    defaults: Fields that transformers' class has if a file leaves them out.
    joined: Modules that hold the rows of several, one after the other.
    norm_offset: What the norms of its files lack: Gemma multiplies by 1 + w.
  """

  name: str
  options: Callable[[base_config.Fields], dict[str, Any]]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  joined: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  norm_offset: float = 0.0


def _biases(fields: base_config.Fields) -> dict[str, Any]:
  return {
      'attention_bias': 'qkvo' if fields.boolean('attention_bias') else '',
      'mlp_bias': fields.boolean('mlp_bias'),
  }


def _attention_bias(fields: base_config.Fields) -> dict[str, Any]:
  return {'attention_bias': _biases(fields)['attention_bias']}


def _layers(
    fields: base_config.Fields, default: Sequence[str]
) -> dict[str, Any]:
  """How far each layer sees: by `layer_types`, or else `default` repeated."""
  pattern, types = tuple(default), fields.get('layer_types')
  if types is not None:
    num_layers = _num_layers(fields)
    if not isinstance(types, list) or len(types) != num_layers or not all(
        isinstance(x, str) and x in _LAYER_TYPES for x in types
    ):
      raise base_config.unsupported(
          'layer_types', types,
          f'{num_layers} of {", ".join(_LAYER_TYPES)} there',
      )
    pattern = _cycle([_LAYER_TYPES[x] for x in types])
  if 'local' not in pattern:
    return {}
  return {
      'layer_pattern': pattern, 'window': fields.integer('sliding_window')
  }


def _num_layers(fields: base_config.Fields) -> int:
  # The limit is ten times the layers of the deepest models, since some fields
  # have an entry for each layer.
  return fields.integer('num_hidden_layers', maximum=2**10)


def _cycle(kinds: Sequence[str]) -> tuple[str, ...]:
  """The shortest beginning that gives all of `kinds` when it is repeated."""
  length = next(
      n for n in range(1, len(kinds) + 1)
      if all(x == kinds[i % n] for i, x in enumerate(kinds))
  )
  return tuple(kinds[:length])


def _same_window(fields: base_config.Fields) -> dict[str, Any]:
  """One window for all layers, or none."""
  if fields.get('layer_types') is not None:
    raise base_config.unsupported(
        'layer_types', fields.get('layer_types'), 'no such field'
    )
  windowed = fields.get('sliding_window') is not None
  return _layers(fields, ('local',) if windowed else ('global',))


def _upper_windows(fields: base_config.Fields) -> dict[str, Any]:
  """Qwen: windows, if any, from the layer `max_window_layers` on."""
  if not fields.boolean('use_sliding_window'):
    return {}
  num_layers = _num_layers(fields)
  below = min(fields.integer('max_window_layers', 28, minimum=0), num_layers)
  pattern = ('global',) * below + ('local',) * (num_layers - below)
  return _layers(fields, _cycle(pattern))


def _qwen2(fields: base_config.Fields) -> dict[str, Any]:
  return {'attention_bias': 'qkv', **_upper_windows(fields)}


def _qwen3(fields: base_config.Fields) -> dict[str, Any]:
  return {
      **_attention_bias(fields), **_upper_windows(fields), 'qk_norm': 'head'
  }


def _gemma(fields: base_config.Fields) -> dict[str, Any]:
  if fields.boolean('use_bidirectional_attention'):
    raise base_config.unsupported(
        'use_bidirectional_attention', True, 'causal attention'
    )
  return {
      **_attention_bias(fields),
      'embedding_scale': fields.integer('hidden_size') ** 0.5,
  }


def _gemma2(
    fields: base_config.Fields, pattern: Sequence[str] = ('local', 'global')
) -> dict[str, Any]:
  return {
      **_gemma(fields),
      **_layers(fields, pattern),
      'norms': 'sandwich',
      'query_scale': fields.number('query_pre_attn_scalar', minimum=1) ** -0.5,
      'attention_softcap': fields.number('attn_logit_softcapping', 0.0),
      'logits_softcap': fields.number('final_logit_softcapping', 0.0),
  }


def _gemma3(fields: base_config.Fields) -> dict[str, Any]:
  every = fields.integer('sliding_window_pattern', 6, maximum=2**10)
  # Its class in transformers never reads attn_logit_softcapping.
  found = _gemma2(fields, ('local',) * (every - 1) + ('global',))
  return {**found, 'qk_norm': 'head', 'attention_softcap': 0.0}


def _olmo2(fields: base_config.Fields) -> dict[str, Any]:
  if fields.get('clip_qkv') is not None:
    raise base_config.unsupported('clip_qkv', fields.get('clip_qkv'), 'null')
  return {**_attention_bias(fields), 'norms': 'post', 'qk_norm': 'joined'}


def _olmo3(fields: base_config.Fields) -> dict[str, Any]:
  pattern = ('local', 'local', 'local', 'global')
  return {**_olmo2(fields), **_layers(fields, pattern)}


def _granite(fields: base_config.Fields) -> dict[str, Any]:
  scale = lambda name: fields.number(f'{name}_multiplier', 1.0)
  return {
      **_biases(fields),
      'embedding_scale': scale('embedding'),
      'query_scale': scale('attention'),
      'residual_scale': scale('residual'),
      'logits_divisor': fields.number('logits_scaling', 1.0, minimum=1e-6),
  }


def _smollm3(fields: base_config.Fields) -> dict[str, Any]:
  if fields.boolean('use_sliding_window'):
    raise base_config.unsupported(
        'use_sliding_window', True, 'no windows (false)'
    )
  every = fields.integer('no_rope_layer_interval', 4, maximum=2**10)
  most = _num_layers(fields)
  rotated = fields.get('no_rope_layers')
  if rotated is None:
    rotated = ([1] * (every - 1) + [0])[:most]
  elif (
      not isinstance(rotated, list)
      or len(rotated) != most
      or not all(type(x) is int and x in (0, 1) for x in rotated)
  ):
    raise base_config.unsupported('no_rope_layers', rotated, '0 or 1 a layer')
  pattern = _cycle([('nope', 'global')[x] for x in rotated])
  return {**_biases(fields), 'layer_pattern': pattern}


_GEMMA = {
    'head_dim': 256, 'hidden_act': 'gelu_pytorch_tanh',
    'tie_word_embeddings': True,
}
_GEMMA_WINDOWS = {
    **_GEMMA, 'sliding_window': 4096, 'query_pre_attn_scalar': 256
}
# Phi-3 joins matrices: the rows of these stand one after the other.
_PHI_JOINED = {
    'qkv_proj': ('q_proj', 'k_proj', 'v_proj'),
    'gate_up_proj': ('gate_proj', 'up_proj'),
}
FAMILIES: Mapping[str, Family] = {
    'llama': Family('Llama', _biases),
    'mistral': Family('Mistral', _same_window, {'sliding_window': 4096}),
    'qwen2': Family('Qwen2', _qwen2, {'sliding_window': 4096}),
    'qwen3': Family('Qwen3', _qwen3, {'sliding_window': 4096, 'head_dim': 128}),
    'gemma': Family('Gemma', _gemma, _GEMMA, norm_offset=1.0),
    'gemma2': Family(
        'Gemma2',
        _gemma2,
        {
            **_GEMMA_WINDOWS,
            'attn_logit_softcapping': 50.0,
            'final_logit_softcapping': 30.0,
        },
        norm_offset=1.0,
    ),
    'gemma3_text': Family(
        'Gemma3',
        _gemma3,
        {
            **_GEMMA_WINDOWS,
            # Files of models that read images leave these out.
            'vocab_size': 262208, 'num_attention_heads': 8,
            'num_key_value_heads': 4, 'max_position_embeddings': 131072,
            'rope_theta': 1e6, 'rope_local_base_freq': 1e4,
        },
        norm_offset=1.0,
    ),
    'phi3': Family(
        'Phi3',
        _same_window,
        {'rms_norm_eps': 1e-5, 'original_max_position_embeddings': 4096},
        joined=_PHI_JOINED,
    ),
    'olmo2': Family('Olmo2', _olmo2, {'rms_norm_eps': 1e-5}),
    'olmo3': Family(
        'Olmo3',
        _olmo3,
        {'rms_norm_eps': 1e-5, 'sliding_window': 4096, 'rope_theta': 5e5},
    ),
    'granite': Family('Granite', _granite),
    'smollm3': Family(
        'SmolLM3',
        _smollm3,
        {'tie_word_embeddings': True, 'rope_theta': 2e6},
    ),
}
_EVERYWHERE = {
    'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'tie_word_embeddings': False
}


def fields_of(config: base_config.HfConfig) -> base_config.Fields:
  """The fields of a `config.json`, with the defaults of its family."""
  defaults = FAMILIES[config['model_type']].defaults
  return base_config.Fields({**_EVERYWHERE, **defaults, **config})


def activation(fields: base_config.Fields) -> str:
  """The activation of the MLP, as Flax calls it."""
  kind, field = fields.config['model_type'], 'hidden_act'
  name = fields.get(field)
  if kind.startswith('gemma'):  # Later ones do not read hidden_act.
    field, tanh = 'hidden_activation', 'gelu_pytorch_tanh'
    name = fields.get(field, name if kind == 'gemma' else tanh)
    # The first files of Gemma say gelu and mean its approximation.
    name = tanh if (kind, name) == ('gemma', 'gelu') else name
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    raise base_config.unsupported(
        field, name, f'one of {", ".join(_ACTIVATIONS)}'
    )
  return _ACTIVATIONS[name]
