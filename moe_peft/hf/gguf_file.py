# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files of decoders, seen as a Hugging Face folder.

Read by the package `gguf`. Quantised tensors are dequantized to float32, so
the base is the model of the file, not the one it was quantized from.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import gguf_config
from moe_peft.hf import gguf_header
from moe_peft.hf import gguf_names

# How texts are split before byte pairs are merged, by `tokenizer.ggml.pre`.
_SINGLE_DIGITS = ('smollm',)


class GgufFile:
  """A file, with the attributes of `folders.Tensors`.

  Attributes:
    shapes: Shape of every tensor by Hugging Face name.
    dtype: float32.
    whole_norms: True: Gemma's norms are stored with the 1 that they add.
    hf_config: What `config.json` of such a model holds.
  """

  dtype = np.dtype(np.float32)
  whole_norms = True

  def __init__(self, file: Path):
    """Opens a file.

    Raises:
      errors.UserError: If the package is missing, the file is damaged, or the
        model is of another family.
    """
    folders.import_extra('gguf', f'{file.name} is a GGUF file')
    self._file = file
    try:
      self._fields, tensors = gguf_header.read(file)
    except (OSError, ValueError) as error:
      raise errors.UserError(
          f'{file} is no readable GGUF file ({error}); it may be truncated.',
          where=file, remedy='Fetch it again.',
      ) from error
    metadata = gguf_config.Metadata(self._fields, file)
    self._swapped = metadata.architecture in gguf_names.NEIGHBORS
    self._tensors = {
        gguf_names.hf_name(name, metadata.architecture): tensor
        for name, tensor in tensors.items()
    }
    factors = {
        name: self._read(name).astype(float).reshape(-1).tolist()
        for name in gguf_names.ROPE_FACTORS if name in self._tensors
    }
    self.hf_config = metadata.hf_config(self._tensors, factors)
    for name in factors:
      del self._tensors[name]
    self.shapes = {name: x.shape for name, x in self._tensors.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads a tensor in float32.

    Raises:
      errors.UserError: If it is quantized in a way that the package cannot
        undo, or the file ends before it does.
    """
    array = self._read(name)
    heads = {
        'q_proj': self.hf_config['num_attention_heads'],
        'k_proj': self.hf_config['num_key_value_heads'],
    }.get(name.split('.')[-2])
    if heads is None or not self._swapped:
      return array
    return _split_halves(array, heads)

  def _read(self, name: str) -> np.ndarray:
    """A tensor as the file has it, in float32."""
    import gguf

    tensor = self._tensors[name]
    try:
      array = gguf.quants.dequantize(*self._quantized(tensor))
    except (NotImplementedError, ValueError, KeyError) as error:
      raise errors.UserError(
          f'{name} cannot be read ({error}).', where=self._file,
          remedy='Fetch it again, or take the F16, Q8_0 or Q4_1 file of the '
          'model.',
      ) from error
    return array.astype(np.float32).reshape(tensor.shape)

  def _quantized(self, tensor: gguf_header.Tensor) -> tuple[np.ndarray, Any]:
    """The bytes of a tensor, row by row, and their type."""
    import gguf

    kind = gguf.GGMLQuantizationType(tensor.kind)
    *rows, features = tensor.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if features % block:
      raise ValueError(f'a row of {features} is no multiple of {block}')
    width = features // block * size
    data = np.memmap(self._file, np.uint8, 'r')[tensor.offset :]
    return data[: math.prod(rows) * width].reshape(*rows, width), kind

  def write_tokenizer(self, folder: Path) -> None:
    """Writes `tokenizer.json`, if the file tells how texts are split.

    Beside it go the names of special tokens and the chat template.

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
      config = self._tokenizer_config(tokenizer)
    except Exception as error:  # The fields may be anything, or missing.
      raise errors.UserError(
          f'The tokenizer of {self._file} cannot be read ({error!r}).',
          where=self._file, remedy='Fetch it again.',
      ) from error
    tokenizer.save(str(folder / 'tokenizer.json'))
    folders.write_json(folder / 'tokenizer_config.json', config)
    template = self._fields.get('tokenizer.chat_template')
    if isinstance(template, str):
      (folder / 'chat_template.jinja').write_text(template, 'utf-8')

  def _tokenizer_config(self, tokenizer: Any) -> dict[str, Any]:
    ids = {x: gguf_config.special_id(self._fields, x) for x in ('bos', 'eos')}
    return {
        'add_bos_token': gguf_config.adds_bos(self._fields),
        **{
            f'{name}_token': tokenizer.id_to_token(token_id)
            for name, token_id in ids.items()
            if token_id is not None
        },
    }

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


def _split_halves(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys with rotary pairs (i, i + head_dim / 2).

  In GGUF files of LLaMA pairs are neighbors, (2i, 2i + 1).

  Args:
    array: `[heads * head_dim, features]`, or a bias.
    heads: Number of heads.
  """
  shape: tuple[int, ...] = (heads, -1, 2, *array.shape[1:])
  return array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
