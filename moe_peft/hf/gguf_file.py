# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files of LLaMA models, seen as a Hugging Face folder.

Read by the package `gguf`. Quantised tensors are dequantized to float32, so
the base is the model of the file, not the one it was quantized from.
"""

import functools
from pathlib import Path
import re
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import folders

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
    'attn_norm': 'input_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
    'ffn_norm': 'post_attention_layernorm',
}
# How texts are split before byte pairs are merged, by `tokenizer.ggml.pre`.
_SINGLE_DIGITS = ('smollm',)


class GgufFile:
  """A file, with the attributes of `folders.Tensors`.

  Attributes:
    shapes: Shape of every tensor by Hugging Face name.
    dtype: float32.
    hf_config: What `config.json` of such a model holds.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, file: Path):
    """Opens a file.

    Raises:
      errors.UserError: If the package is missing, the file is damaged, or the
        model is not a LLaMA.
    """
    gguf = folders.import_extra('gguf', f'{file.name} is a GGUF file')
    self._file = file
    try:
      reader = gguf.GGUFReader(file)
      self._fields = {k: f.contents() for k, f in reader.fields.items()}
    except Exception as error:  # The package raises many kinds.
      raise errors.UserError(
          f'{file} is no readable GGUF file ({error}); it may be truncated.',
          where=file, remedy='Fetch it again.',
      ) from error
    kind = self._fields.get('general.architecture')
    if kind != 'llama':
      raise errors.UserError(
          f'{file} holds a model of architecture {kind!r}; only llama can be '
          'imported.', where=file,
      )
    self.hf_config = self._config()
    self._tensors = {_hf_name(t.name): t for t in reader.tensors}
    if 'lm_head.weight' not in self._tensors:
      self.hf_config['tie_word_embeddings'] = True
    self.shapes = {
        # GGUF counts axes from the innermost one.
        name: tuple(int(n) for n in reversed(tensor.shape))
        for name, tensor in self._tensors.items()
    }

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads a tensor in float32.

    Raises:
      errors.UserError: If it is quantized in a way that the package cannot
        undo.
    """
    import gguf

    tensor = self._tensors[name]
    try:
      array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise errors.UserError(
          f'{tensor.name} has the type {tensor.tensor_type.name}, which the '
          'package gguf cannot dequantize.', where=self._file,
          remedy='Take the F16, Q8_0 or Q4_1 file of the model.',
      ) from error
    array = array.astype(np.float32).reshape(self.shapes[name])
    heads = {
        'q_proj': self.hf_config['num_attention_heads'],
        'k_proj': self.hf_config['num_key_value_heads'],
    }.get(name.split('.')[-2])
    return array if heads is None else _split_halves(array, heads)

  def write_tokenizer(self, folder: Path) -> None:
    """Writes `tokenizer.json`, if the file tells how texts are split.

    Args:
      folder: Where to.

    Raises:
      errors.UserError: If what the file says of it cannot be used.
    """
    if (
        self._fields.get('tokenizer.ggml.model') != 'gpt2'
        or self._fields.get('tokenizer.ggml.pre') not in _SINGLE_DIGITS
    ):
      return
    try:
      tokenizer = self._tokenizer()
    except Exception as error:  # The fields may be anything, or missing.
      raise errors.UserError(
          f'The tokenizer of {self._file} cannot be read ({error!r}).',
          where=self._file, remedy='Fetch it again.',
      ) from error
    tokenizer.save(str(folder / 'tokenizer.json'))

  def _tokenizer(self) -> Any:
    import gguf
    import tokenizers
    from tokenizers import decoders
    from tokenizers import models
    from tokenizers import pre_tokenizers

    tokens = self._fields['tokenizer.ggml.tokens']
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[
                tuple(merge.split(' '))
                for merge in self._fields['tokenizer.ggml.merges']
            ],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = self._fields['tokenizer.ggml.token_type']
    control = int(gguf.TokenType.CONTROL)
    tokenizer.add_special_tokens([
        token
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == control
    ])
    return tokenizer

  def _config(self) -> dict[str, Any]:
    field = functools.partial(_field, self._fields, self._file)
    scaling = self._fields.get('llama.rope.scaling.type', 'none')
    size = lambda name: base_config.integer(name, field(name))
    heads, width = size('attention.head_count'), size('embedding_length')
    tokens = self._fields.get('tokenizer.ggml.tokens')
    has_tokens = isinstance(tokens, list) and tokens
    return {
        'model_type': 'llama',
        'architectures': ['LlamaForCausalLM'],
        'vocab_size': len(tokens) if has_tokens else field('vocab_size'),
        'hidden_size': width,
        'intermediate_size': field('feed_forward_length'),
        'num_hidden_layers': field('block_count'),
        'num_attention_heads': heads,
        'num_key_value_heads': field('attention.head_count_kv', heads),
        'head_dim': field('attention.key_length', width // heads),
        'rms_norm_eps': field('attention.layer_norm_rms_epsilon'),
        'rope_theta': field('rope.freq_base', 10000.0),
        'rope_scaling': None if scaling == 'none' else {'rope_type': scaling},
        'hidden_act': 'silu',
        'tie_word_embeddings': False,
        'bos_token_id': self._fields.get('tokenizer.ggml.bos_token_id'),
        'eos_token_id': self._fields.get('tokenizer.ggml.eos_token_id'),
    }


def _field(fields, file, name: str, default: Any = None) -> Any:
  value = fields.get(f'llama.{name}', default)
  if value is None:
    raise errors.UserError(f'{file} does not say llama.{name}.', where=file)
  return value


def _hf_name(name: str) -> str:
  """Hugging Face name; of unknown tensors the name itself."""
  match = re.fullmatch(r'blk\.(\d+)\.(\w+)\.weight', name)
  if match and match[2] in _LAYER_TENSORS:
    return f'model.layers.{match[1]}.{_LAYER_TENSORS[match[2]]}.weight'
  stem = name.removesuffix('.weight')
  return f'{_TENSORS[stem]}.weight' if stem in _TENSORS else name


def _split_halves(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys with rotary pairs (i, i + head_dim / 2).

  In GGUF files pairs are neighbors, (2i, 2i + 1).

  Args:
    array: `[heads * head_dim, features]`.
    heads: Number of heads.
  """
  shape: tuple[int, ...] = (heads, -1, 2, array.shape[-1])
  return array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
