# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens as people read them: one after another, special ones visible."""

from collections.abc import Iterable, Mapping
import re

import seqio

from moe_peft.data import vocabularies

_REPLACEMENT = '\ufffd'  # Of bytes that are no whole character yet.
_MOST_BYTES = 4  # Of a character in UTF-8.
# Signs that move a terminal's cursor or change its colors.
_CONTROLS = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')


class TextStream:
  """The text of an answer, as far as its tokens are known."""

  def __init__(self, vocabulary: seqio.Vocabulary):
    """Begins an answer.

    Args:
      vocabulary: Vocabulary of the ids that `add` gets, as data sets have them.
    """
    self._vocabulary = vocabulary
    self._ids: list[int] = []
    self._text = ''

  def add(self, token: int) -> str:
    """Returns what a token adds; what a character lacks is held back."""
    self._ids.append(int(token))
    text = self._vocabulary.decode(self._ids)
    whole = text.rstrip(_REPLACEMENT)
    if len(text) - len(whole) < _MOST_BYTES:  # Else it becomes no character.
      text = whole
    new, self._text = text[len(self._text) :], text
    return new

  def rest(self) -> str:
    """Returns what was held back, once there are no more tokens."""
    return self._vocabulary.decode(self._ids)[len(self._text) :]


def visible(text: str) -> str:
  """The text with signs that control a terminal as in Python, `\\x1b`."""
  return _CONTROLS.sub(lambda sign: repr(sign[0])[1:-1], text)


def texts(vocabulary: seqio.Vocabulary, ids: Iterable[int]) -> list[str]:
  """The text that each token adds to those before it; special ones by name.

  Args:
    vocabulary: Vocabulary of the ids.
    ids: Tokens, as data sets have them.
  """
  special, found, stream = special_texts(vocabulary), [], None
  for token in map(int, ids):
    if token in special:
      found.append(special[token])
      stream = None
    else:
      stream = stream or TextStream(vocabulary)
      found.append(stream.add(token))
  return found


def special_texts(vocabulary: seqio.Vocabulary) -> Mapping[int, str]:
  """Names of the tokens of a vocabulary that stand for no text, by id."""
  if isinstance(vocabulary, vocabularies.TokenizerVocabulary):
    added = vocabulary.tokenizer.get_added_tokens_decoder()
    return {
        token_id + vocabulary.id_offset: token.content
        for token_id, token in added.items()
        if token.special
    }
  names = {vocabulary.pad_id: '<pad>', vocabulary.eos_id: '</s>',
           vocabulary.unk_id: '<unk>'}
  extra = range(vocabulary.vocab_size - vocabulary.extra_ids,
                vocabulary.vocab_size)
  names |= {
      token_id: f'<extra_id_{number}>'
      for number, token_id in enumerate(reversed(extra))
  }
  names.pop(None, None)
  return names
