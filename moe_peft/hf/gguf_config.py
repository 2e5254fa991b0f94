# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The metadata of a GGUF file as a `config.json`, and its names of tensors."""

from collections.abc import Collection, Mapping
import math
from pathlib import Path
import re
from typing import Any

from moe_peft import errors
from moe_peft.hf import base_config

# Families by `general.architecture`. Mistral's files say llama.
FAMILIES = {
    **{x: x for x in ('llama', 'qwen2', 'qwen3', 'gemma', 'gemma2')},
    'gemma3': 'gemma3_text',
}
_TENSORS = {
    'token_embd': 'model.embed_tokens',
    'output_norm': 'model.norm',
    'output': 'lm_head',
}
_LAYER_TENSORS = {
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'attn_q_norm': 'self_attn.q_norm',
    'attn_k_norm': 'self_attn.k_norm',
    'attn_norm': 'input_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
    'ffn_norm': 'post_attention_layernorm',
}
# Gemma 2 and 3 norm both sides of a branch.
_SANDWICH = {
    'post_attention_norm': 'post_attention_layernorm',
    'ffn_norm': 'pre_feedforward_layernorm',
    'post_ffw_norm': 'post_feedforward_layernorm',
}
# Divides the frequencies of LLaMA 3, one number a pair.
ROPE_FACTORS = 'rope_freqs.weight'
_LENGTH = 'rope.scaling.original_context_length'
# All that is known of positions and attention; any other field is refused.
_KNOWN = {
    'rope.freq_base', 'rope.freq_base_swa', 'rope.dimension_count',
    'rope.scaling.type', 'rope.scaling.factor', _LENGTH,
    'rope.scaling.finetuned', 'rope.scale_linear',
    'rope.scaling.attn_factor', 'rope.scaling.yarn_beta_fast',
    'rope.scaling.yarn_beta_slow', 'attention.head_count',
    'attention.head_count_kv', 'attention.layer_norm_rms_epsilon',
    'attention.key_length', 'attention.value_length',
    'attention.sliding_window',
}  # fmt: skip
_LARGEST_GEMMAS = {'gemma2': 46, 'gemma3': 62}  # Layers of the 27B.


def hf_name(name: str, architecture: str) -> str:
  """Hugging Face name; of unknown tensors the name itself."""
  known = _LAYER_TENSORS
  if architecture in ('gemma2', 'gemma3'):
    known = {**known, **_SANDWICH}
  match = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if match and match[2] in known:
    return f'model.layers.{match[1]}.{known[match[2]]}.{match[3]}'
  stem = name.removesuffix('.weight')
  return f'{_TENSORS[stem]}.weight' if stem in _TENSORS else name


def special_id(fields: Mapping[str, Any], name: str) -> Any:
  """What a file says of a special token, 'bos' or 'eos'; None for nothing."""
  return fields.get(f'tokenizer.ggml.{name}_token_id')


def adds_bos(fields: Mapping[str, Any]) -> bool:
  """Whether rows begin with it; llama.cpp's default is SentencePiece's."""
  is_pieces = fields.get('tokenizer.ggml.model') == 'llama'
  return fields.get('tokenizer.ggml.add_bos_token', is_pieces) is True


class Metadata:
  """The fields of a file, without the architecture that they begin with."""

  def __init__(self, fields: Mapping[str, Any], file: Path):
    """Raises errors.UserError if the architecture cannot be imported."""
    kind = fields.get('general.architecture')
    if not isinstance(kind, str) or kind not in FAMILIES:
      raise errors.UserError(
          f'{file} holds a model of architecture {kind!r}, which cannot be '
          'imported from GGUF.', where=file,
          remedy=f'Take one of {", ".join(FAMILIES)}, or the folder with '
          'config.json and safetensors.',
      )
    self.architecture, self._file, self._all = kind, file, fields
    prefix = f'{kind}.'
    self._fields = {
        k.removeprefix(prefix): v
        for k, v in fields.items() if k.startswith(prefix)
    }

  def get(self, name: str, default: Any = None) -> Any:
    value = self._fields.get(name, default)
    if value is None:
      raise errors.UserError(
          f'{self._file} does not say {self.architecture}.{name}.',
          where=self._file,
      )
    return value

  def hf_config(
      self, names: Collection[str], rope_factors: list[float] | None
  ) -> dict[str, Any]:
    """Returns what `config.json` of the model holds.

    Args:
      names: Hugging Face names of the tensors.
      rope_factors: Contents of the tensor `ROPE_FACTORS`, if there is one.

    Raises:
      errors.UserError: For fields of positions and attention that are unknown.
    """
    self._check_known()
    size = lambda name: base_config.integer(name, self.get(name))
    heads, width = size('attention.head_count'), size('embedding_length')
    head_dim = base_config.integer(
        'attention.key_length',
        self.get('attention.key_length', width // heads),
    )
    if self.get('attention.value_length', head_dim) != head_dim:
      raise self._refusal('attention.value_length')
    tokens = self._all.get('tokenizer.ggml.tokens')
    count = len(tokens) if isinstance(tokens, list) else 0
    return {
        'model_type': FAMILIES[self.architecture],
        'vocab_size': count or self.get('vocab_size'),
        'hidden_size': width,
        'num_attention_heads': heads,
        'num_hidden_layers': self.get('block_count'),
        'intermediate_size': self.get('feed_forward_length'),
        'num_key_value_heads': self.get('attention.head_count_kv', heads),
        'head_dim': head_dim,
        'max_position_embeddings': self._fields.get('context_length'),
        'rms_norm_eps': self.get('attention.layer_norm_rms_epsilon'),
        'tie_word_embeddings': 'lm_head.weight' not in names,
        'attention_bias': any(x.endswith('o_proj.bias') for x in names),
        **self._positions(head_dim, rope_factors),
        **self._gemma(heads, width, head_dim),
        'bos_token_id': special_id(self._all, 'bos')
        if adds_bos(self._all) else None,
        'eos_token_id': special_id(self._all, 'eos'),
    }

  def _refusal(self, name: str) -> errors.UserError:
    return errors.UserError(
        f'{self._file} has {self.architecture}.{name} = '
        f'{self._fields[name]!r}, which cannot be imported from GGUF.',
        where=self._file,
        remedy='Take the folder with config.json and safetensors.',
    )

  def _check_known(self) -> None:
    for name in self._fields:
      if name.startswith(('rope.', 'attention.')) and name not in _KNOWN:
        raise self._refusal(name)
    # Only Gemma's files mean it: those of others are read without windows.
    name = 'attention.sliding_window'
    if self._fields.get(name) and self.architecture not in _LARGEST_GEMMAS:
      raise self._refusal(name)

  def _positions(
      self, head_dim: int, rope_factors: list[float] | None
  ) -> dict[str, Any]:
    name = 'rope.dimension_count'
    rotated = base_config.integer(
        name, self.get(name, head_dim), maximum=head_dim
    )
    scaling = self._scaling()
    if rope_factors is not None:
      if scaling:
        raise self._refusal('rope.scaling.type')
      # The same arithmetic: each frequency divided by a number of its own.
      scaling = {
          'rope_type': 'longrope', 'factor': 1.0, 'attention_factor': 1.0,
          'short_factor': rope_factors, 'long_factor': rope_factors,
          'original_max_position_embeddings': self.get('context_length'),
      }
    found = {
        'rope_theta': self.get('rope.freq_base', 10000.0),
        'rope_scaling': scaling,
    }
    if rotated != head_dim:
      found['partial_rotary_factor'] = rotated / head_dim
    return found

  def _scaling(self) -> dict[str, Any] | None:
    factor = self._fields.get(
        'rope.scaling.factor', self._fields.get('rope.scale_linear')
    )
    kind = self.get('rope.scaling.type', 'linear' if factor else 'none')
    if kind == 'none' or factor == 1.0:
      return None
    if kind == 'linear':
      return {'rope_type': kind, 'factor': factor}
    if kind != 'yarn':
      raise self._refusal('rope.scaling.type')
    factor = base_config.number('rope.scaling.factor', factor, minimum=1.0)
    name = 'rope.scaling.attn_factor'
    more = base_config.number(name, self.get(name, 1.0))
    return {
        'rope_type': kind,
        'factor': factor,
        'original_max_position_embeddings': self.get(_LENGTH),
        'attention_factor': more * (0.1 * math.log(factor) + 1.0),
        'beta_fast': self.get('rope.scaling.yarn_beta_fast', 32.0),
        'beta_slow': self.get('rope.scaling.yarn_beta_slow', 1.0),
    }

  def _gemma(self, heads: int, width: int, head_dim: int) -> dict[str, Any]:
    """What Gemma 2 and 3 have; llama.cpp knows some of it by the size."""
    kind = self.architecture
    if kind not in _LARGEST_GEMMAS:
      return {}
    largest = self.get('block_count') == _LARGEST_GEMMAS[kind]
    found = {
        'query_pre_attn_scalar': width // heads if largest else head_dim,
        'sliding_window': self.get('attention.sliding_window'),
    }
    if kind == 'gemma3':
      local = self.get('rope.freq_base_swa', 10000.0)
      return {**found, 'rope_local_base_freq': local}
    return {
        **found,
        'attn_logit_softcapping': self.get('attn_logit_softcapping', 50.0),
        'final_logit_softcapping': self.get('final_logit_softcapping', 30.0),
    }
