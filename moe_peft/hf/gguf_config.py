# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The metadata of a GGUF file as a `config.json`."""

from collections.abc import Collection, Mapping
import math
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import gguf_names

# Families by `general.architecture`. Mistral's files say llama.
FAMILIES = {
    **{x: x for x in (
        'llama', 'qwen2', 'qwen3', 'gemma', 'gemma2', 'phi3', 'olmo2',
        'granite', 'smollm3',
    )},
    'gemma3': 'gemma3_text',
}
_LENGTH = 'rope.scaling.original_context_length'
# The fields of positions and attention that are read; any other is refused.
_KNOWN = {
    'rope.freq_base', 'rope.freq_base_swa', 'rope.dimension_count',
    'rope.scaling.type', 'rope.scaling.factor', _LENGTH,
    'rope.scaling.finetuned', 'rope.scale_linear',
    'rope.scaling.attn_factor', 'rope.scaling.yarn_beta_fast',
    'rope.scaling.yarn_beta_slow', 'attention.head_count',
    'attention.head_count_kv', 'attention.layer_norm_rms_epsilon',
    'attention.key_length', 'attention.value_length',
    'attention.sliding_window', 'attention.scale',
}  # fmt: skip
# The window of Phi-3 for 4,096 tokens. The first files do not say it, and
# llama.cpp goes by the sizes (its pull request 8931).
_OLD_PHI_WINDOW = 2047
# Of LLaMA 3, Falcon 3 and Mistral, by how texts are split.
_BEGIN_WITH_BOS = (
    'llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'pixtral', 'tekken'
)
# Tokens that end a turn in every model that has them. Where converters wrote no
# field for them, llama.cpp goes by their texts (`llama-vocab.cpp`).
_TURN_ENDS = (
    '<|eot_id|>', '<|eom_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>',
    '<|endoftext|>', '<|end_of_text|>',
)
_LARGEST_GEMMAS = {'gemma2': 46, 'gemma3': 62}  # Layers of the 27B.


def special_id(fields: Mapping[str, Any], name: str) -> Any:
  """What a file says of a special token, as 'bos'; None for nothing."""
  return fields.get(f'tokenizer.ggml.{name}_token_id')


def ends(fields: Mapping[str, Any]) -> list[Any]:
  """At which ids an answer ends: eos, if there is one, and ends of turns."""
  tokens = fields.get('tokenizer.ggml.tokens')
  tokens = tokens if isinstance(tokens, list) else []
  eos, *turns = (special_id(fields, name) for name in ('eos', 'eot', 'eom'))
  known = range(len(tokens) or 2**31)
  return list(dict.fromkeys([
      *([] if eos is None else [eos]),
      # Not -1 and the like, for what a model does not have.
      *(i for i in turns if isinstance(i, int) and i in known),
      *(number for number, text in enumerate(tokens) if text in _TURN_ENDS),
  ]))


def adds_bos(fields: Mapping[str, Any]) -> bool:
  """Whether rows begin with bos.

  Where a file does not say it, as those of LLaMA 3 before 2025, rows of
  SentencePiece do, and those of some byte pairs (llama.cpp, `llama-vocab.cpp`).
  """
  default = (
      fields.get('tokenizer.ggml.model') == 'llama'
      or fields.get('tokenizer.ggml.pre') in _BEGIN_WITH_BOS
  )
  return fields.get('tokenizer.ggml.add_bos_token', default) is True


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
      self, names: Collection[str],
      rope_factors: Mapping[str, list[float]] | None = None,
  ) -> dict[str, Any]:
    """Returns what `config.json` of the model holds.

    Args:
      names: Hugging Face names of the tensors.
      rope_factors: Contents of those of `gguf_names.ROPE_FACTORS` that are
        there.

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
        **self._positions(head_dim, rope_factors or {}),
        **self._of_family(heads, width, head_dim),
        'bos_token_id': special_id(self._all, 'bos')
        if adds_bos(self._all) else None,
        'eos_token_id': ends(self._all) or None,
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
    # Which layers have a window is known of Gemma and Phi alone.
    name = 'attention.sliding_window'
    windowed = (*_LARGEST_GEMMAS, 'phi3')
    if self._fields.get(name) and self.architecture not in windowed:
      raise self._refusal(name)
    # False says that Granite rotates nothing; others ignore it.
    name = 'rope.scaling.finetuned'
    granite = self.architecture == 'granite'
    if granite and self._fields.get(name, True) is not True:
      raise self._refusal(name)
    if not granite and 'attention.scale' in self._fields:
      raise self._refusal('attention.scale')

  def _positions(
      self, head_dim: int, rope_factors: Mapping[str, list[float]]
  ) -> dict[str, Any]:
    name = 'rope.dimension_count'
    rotated = base_config.integer(
        name, self.get(name, head_dim), maximum=head_dim
    )
    scaling = self._scaling()
    if rope_factors:
      if scaling:
        raise self._refusal('rope.scaling.type')
      scaling = self._divided(rope_factors)
    found = {
        'rope_theta': self.get('rope.freq_base', 10000.0),
        'rope_scaling': scaling,
    }
    if rotated != head_dim:
      if self.architecture != 'phi3':
        raise self._refusal(name)
      share = rotated / head_dim
      if int(head_dim * share) < rotated:  # As transformers reads it, too.
        share = math.nextafter(share, 1.0)
      found['partial_rotary_factor'] = share
    return found

  def _divided(self, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Frequencies that are divided by a number each."""
    every, short, long = map(factors.get, gguf_names.ROPE_FACTORS)
    length = base_config.integer('context_length', self.get('context_length'))
    scaling = {'rope_type': 'longrope', 'factor': 1.0, 'attention_factor': 1.0}
    if every is not None:  # LLaMA 3 has the same for rows of all lengths.
      return {
          **scaling, 'short_factor': every, 'long_factor': every,
          'original_max_position_embeddings': length,
      }
    if short is None or long is None:
      missing = gguf_names.ROPE_FACTORS[1 if short is None else 2]
      raise errors.UserError(
          f'{self._file} has no tensor {missing}.', where=self._file,
          remedy='Take the folder with config.json and safetensors.',
      )
    original = base_config.integer(_LENGTH, self.get(_LENGTH))
    return {
        **scaling,
        'factor': length / original,
        'attention_factor': self.get('rope.scaling.attn_factor', 1.0),
        'short_factor': short, 'long_factor': long,
        'original_max_position_embeddings': original,
    }

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

  def _of_family(
      self, heads: int, width: int, head_dim: int
  ) -> dict[str, Any]:
    """What one family alone has, by llama.cpp's converter and graphs."""
    kind = self.architecture
    if kind == 'granite':
      # A scale of 0 is none.
      scale = lambda name: self._fields.get(name) or 1.0
      return {
          'attention_multiplier':
              self._fields.get('attention.scale') or head_dim**-0.5,
          'embedding_multiplier': scale('embedding_scale'),
          'residual_multiplier': scale('residual_scale'),
          'logits_scaling': self.get('logit_scale'),
      }
    if kind == 'phi3':  # Its files say 0 for no window.
      small = self.get('block_count') in (32, 40)  # Phi-3 mini and medium.
      old = small and self._fields.get('context_length') == 4096
      window = self._fields.get(
          'attention.sliding_window', _OLD_PHI_WINDOW if old else 0
      )
      return {
          'sliding_window': window or None,
          'original_max_position_embeddings':
              self._fields.get(_LENGTH, self.get('context_length')),
      }
    if kind in _LARGEST_GEMMAS:
      return self._gemma(heads, width, head_dim)
    return {}

  def _gemma(self, heads: int, width: int, head_dim: int) -> dict[str, Any]:
    """What Gemma 2 and 3 have; llama.cpp knows some of it by the size."""
    kind = self.architecture
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
