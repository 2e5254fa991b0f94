# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies that SeqIO does not have."""

from collections.abc import Iterable, Sequence
import functools
import json
import os
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import tokenizer_file as tokenizer_file_lib


@functools.lru_cache(maxsize=1)
def byte_vocabulary() -> seqio.ByteVocabulary:
  """Returns ByT5's vocabulary (arXiv 2105.13626): 384 ids, no file.

  0 is padding, 1 the end of a sequence, 2 unknown, 3 to 258 the bytes, and
  259 to 383 are 125 sentinels (383 is the first one of T5's span corruption).
  """
  return seqio.ByteVocabulary(extra_ids=125)


class TokenizerVocabulary(seqio.Vocabulary):
  """The `tokenizer.json` of a model on the Hub.

  Read by the package `tokenizers` when it is first needed. All ids that SeqIO
  sees are those of data sets (see models/dataset_ids.py): the file's plus
  `id_offset`. Text gets no special tokens by itself, and those written in it,
  as `<|im_start|>`, are text too.
  """

  def __init__(
      self,
      tokenizer_file: str,
      eos_id: int,
      stop_ids: Sequence[int] = (),
      num_ids: int | None = None,
      special_tokens_in_text: bool = False,
  ):
    """Names the file.

    Args:
      tokenizer_file: Path of a `tokenizer.json`.
      eos_id: The id, as in the file, that ends a sequence.
      stop_ids: More ids at which an answer ends, as the end of a turn.
      num_ids: Rows of the model's embedding, if that is known.
      special_tokens_in_text: Whether special tokens that stand in a text are
        more than text.

    Raises:
      errors.UserError: If an id is no whole number.
    """
    for name, ids in (('eos_id', [eos_id]), ('stop_ids', stop_ids)):
      wrong = [x for x in ids if type(x) is not int or x < 0]
      if wrong:
        raise errors.UserError(
            f'The end of a sequence cannot have the id {wrong[0]!r}.',
            f'vocabularies.TokenizerVocabulary.{name}',
            'Choose the id of a special token.',
        )
    super().__init__()
    self.tokenizer_file = tokenizer_file
    self.special_tokens_in_text = special_tokens_in_text
    self._num_ids = num_ids
    self._stop_ids = tuple(dict.fromkeys((eos_id, *stop_ids)))

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The `tokenizers.Tokenizer`; it knows special tokens in texts.

    Raises:
      errors.UserError: If the package or the file is missing, or an id that
        ends sequences is no token.
    """
    tokenizer = read_tokenizer(self.tokenizer_file)
    for token_id in self._stop_ids:
      if tokenizer.id_to_token(token_id) is None:
        is_first = token_id == self._stop_ids[0]
        raise errors.UserError(
            f'{self.tokenizer_file} has no token with the id {token_id}, '
            'which is to end sequences.',
            'vocabularies.TokenizerVocabulary.'
            + ('eos_id' if is_first else 'stop_ids'),
        )
    return tokenizer

  @functools.cached_property
  def _text_tokenizer(self) -> Any:
    """The one for texts, to which special tokens are no more than that."""
    return read_tokenizer(self.tokenizer_file, self.special_tokens_in_text)

  @functools.cached_property
  def id_offset(self) -> int:
    """0 if the file's id 0 is for padding alone, else 1.

    In earlier versions only such files could be read, so their ids stay.
    """
    first = self.tokenizer.get_added_tokens_decoder().get(0)
    if first is None or not first.special or 0 in self._stop_ids:
      return 1
    return int(_unknown_id(self.tokenizer) == 0)

  @property
  def eos_id(self) -> int:
    return self._stop_ids[0] + self.id_offset

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Where an answer ends; `eos_id` is the first."""
    return tuple(x + self.id_offset for x in self._stop_ids)

  @property
  def unk_id(self) -> None:
    return None

  @functools.cached_property
  def _base_vocab_size(self) -> int:
    # Ids may have holes.
    last = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
    return last + 1 + self.id_offset

  @functools.cached_property
  def last_in_texts(self) -> tuple[str, int]:
    """The last token that a text may have, and the ids up to it.

    A text has no special tokens: there may be one more than the model knows,
    as for the images of its larger relatives.
    """
    tokens = self.tokenizer.get_vocab(with_added_tokens=True)
    if not self.special_tokens_in_text:
      added = self.tokenizer.get_added_tokens_decoder().values()
      for token in added:
        if token.special:
          tokens.pop(token.content, None)
    token, last = max(tokens.items(), key=lambda item: item[1])
    return token, last + 1

  def _encode(self, s: str) -> list[int]:
    with tokenizer_file_lib.refused(f'{self.tokenizer_file} fails on a text'):
      ids = self._text_tokenizer.encode(s, add_special_tokens=False).ids
    return self.in_data_sets(ids)

  def in_data_sets(self, ids: Sequence[int]) -> list[int]:
    """Ids of the file as data sets have them.

    Raises:
      errors.UserError: If the embedding of the model has no row for one.
    """
    last = max(ids, default=0)
    if self._num_ids is not None and last >= self._num_ids:
      raise errors.UserError(
          f'A text has the token {self.tokenizer.id_to_token(last)!r} with the '
          f'id {last}. {self.tokenizer_file} has '
          f'{self.vocab_size - self.id_offset} ids, and the embedding of the '
          f'model {self._num_ids} rows.', 'VOCABULARY',
          'Take the token out of the text, or the tokenizer that the model was '
          'trained with.',
      )
    return [x + self.id_offset for x in ids]

  def _decode(self, ids: Iterable[int]) -> str:
    """Without padding, ends, and other special tokens."""
    known = [int(x) - self.id_offset for x in ids]
    known = [x for x in known if x >= 0 and x not in self._stop_ids]
    return self.tokenizer.decode(known, skip_special_tokens=True)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: np.asarray(self._encode(text.decode()), np.int32)
    # TensorFlow saves iterators over functions that are not stateful.
    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(ids):
      rows = ids.reshape(-1, ids.shape[-1])
      texts = np.array([self._decode(row).encode() for row in rows], object)
      return texts.reshape(ids.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    return tf.ensure_shape(texts, ids.shape[:-1])

  def _settings(self) -> tuple[Any, ...]:
    return (self.tokenizer_file, self._stop_ids, self.special_tokens_in_text)

  def __eq__(self, other: Any) -> bool:
    return (
        isinstance(other, TokenizerVocabulary)
        and self._settings() == other._settings()
    )

  def __hash__(self) -> int:
    return hash(self._settings())


def read_tokenizer(
    file: str, special_tokens_in_text: bool = True, begins: bool = True
) -> Any:
  """Reads a `tokenizer.json`; returns a `tokenizers.Tokenizer`, not to change.

  Args:
    file: Its path.
    special_tokens_in_text: Whether special tokens in a text are more than text.
    begins: Whether it reads whole texts, and not what stands within one.

  Raises:
    errors.UserError: If the package or the file is missing or damaged.
  """
  path = os.path.expanduser(file)
  time = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
  return _read_tokenizer(path, time, special_tokens_in_text, begins)


@functools.lru_cache(maxsize=4)  # The largest take a second and 200 MB each.
def _read_tokenizer(
    path: str, time: int, special_tokens_in_text: bool, begins: bool
) -> Any:
  if not begins:
    whole = _read_tokenizer(path, time, special_tokens_in_text, True)
    return tokenizer_file_lib.within_texts(whole)
  del time  # Another time is another file.
  tokenizer = tokenizer_file_lib.read(path)
  tokenizer.no_truncation()  # The run decides on lengths, not the file.
  tokenizer.no_padding()
  tokenizer.encode_special_tokens = not special_tokens_in_text
  return tokenizer


def _unknown_id(tokenizer: Any) -> int | None:
  """What becomes of characters that a tokenizer does not know."""
  model = tokenizer.model
  if hasattr(model, 'unk_token'):
    token = model.unk_token
    return None if token is None else tokenizer.token_to_id(token)
  return json.loads(tokenizer.to_str())['model'].get('unk_id')  # Unigram.
