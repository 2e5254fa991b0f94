# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies that SeqIO does not have."""

from collections.abc import Iterable, Sequence
import functools
import os
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import packages


@functools.lru_cache(maxsize=1)
def byte_vocabulary() -> seqio.ByteVocabulary:
  """Returns ByT5's vocabulary (arXiv 2105.13626): 384 ids, no file.

  0 is padding, 1 the end of a sequence, 2 unknown, 3 to 258 the bytes, and
  259 to 383 are 125 sentinels (383 is the first one of T5's span corruption).
  """
  return seqio.ByteVocabulary(extra_ids=125)


class TokenizerVocabulary(seqio.Vocabulary):
  """The `tokenizer.json` of a model on the Hub, for decoder-only bases.

  Read by the package `tokenizers` when it is first needed. Text never gets
  special tokens by itself; those written in it, as `<|im_start|>`, are read as
  such.
  """

  def __init__(self, tokenizer_file: str, eos_id: int):
    """Names the file.

    Args:
      tokenizer_file: Path of a `tokenizer.json`.
      eos_id: The id that ends a sequence.

    Raises:
      errors.UserError: If that is 0, with which SeqIO pads: padding is never
        trained, so no answer would end.
    """
    if type(eos_id) is not int or eos_id < 1:
      raise errors.UserError(
          f'The end of a sequence cannot have the id {eos_id!r}.',
          'vocabularies.TokenizerVocabulary.eos_id',
          'Choose the id of another special token; 0 is padding.',
      )
    super().__init__()
    self.tokenizer_file = tokenizer_file
    self._eos_id = eos_id

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The `tokenizers.Tokenizer`.

    Raises:
      errors.UserError: If the package or the file is missing, if id 0, with
        which SeqIO pads, is an ordinary token, or if `eos_id` is no token.
    """
    tokenizers = packages.import_optional('tokenizers', 'gguf')
    where = 'VOCABULARY_FILE'
    try:
      file = os.path.expanduser(self.tokenizer_file)
      tokenizer = tokenizers.Tokenizer.from_file(file)
    except Exception as error:  # The library raises nothing more exact.
      raise errors.UserError(
          f'{self.tokenizer_file} is no tokenizer.json that can be read: '
          f'{error}.', where,
      ) from error
    first = tokenizer.get_added_tokens_decoder().get(0)
    if first is None or not first.special:
      raise errors.UserError(
          f'In {self.tokenizer_file} the token with id 0, '
          f'{tokenizer.id_to_token(0)!r}, is an ordinary one, but SeqIO pads '
          'with 0.', where, 'Use another vocabulary.',
      )
    if tokenizer.id_to_token(self._eos_id) is None:
      raise errors.UserError(
          f'{self.tokenizer_file} has no token with the id {self._eos_id}, '
          'which is to end sequences.',
          'vocabularies.TokenizerVocabulary.eos_id',
      )
    tokenizer.no_truncation()  # The run decides on lengths, not the file.
    tokenizer.no_padding()
    return tokenizer

  @property
  def bos_id(self) -> int:
    return self.pad_id

  @property
  def eos_id(self) -> int:
    return self._eos_id

  @property
  def unk_id(self) -> None:
    return None

  @functools.cached_property
  def _base_vocab_size(self) -> int:
    # Ids may have holes.
    return max(self.tokenizer.get_vocab().values()) + 1

  def _encode(self, s: str) -> Sequence[int]:
    return self.tokenizer.encode(s, add_special_tokens=False).ids

  def _decode(self, ids: Iterable[int]) -> str:
    return self.tokenizer.decode(list(ids), skip_special_tokens=True)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: np.asarray(self._encode(text.decode()), np.int32)
    # TensorFlow saves iterators over functions that are not stateful.
    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(self._decode, [ids], tf.string, stateful=False)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, TokenizerVocabulary) and (
        (self.tokenizer_file, self.eos_id)
        == (other.tokenizer_file, other.eos_id)
    )

  def __hash__(self) -> int:
    return hash((self.tokenizer_file, self.eos_id))
