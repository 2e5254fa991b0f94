# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that a chat template wrote as tokens.

The template's own special tokens are tokens. Those that stand in what somebody
said are text: else a user could end a turn and begin one of the system. Nothing
is added before or behind: the template writes what begins and ends a row.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
from pathlib import Path
import re
from typing import Any

from moe_peft.data import chat_template
from moe_peft.data import rows
from moe_peft.data import tokenizer_file
from moe_peft.data import vocabularies

# Stands within special tokens that a message spells; of a private area.
_MARK = '\U0010fffb'


@dataclasses.dataclass(frozen=True)
class TemplateTokens:
  """A template and the tokenizer that reads its texts.

  Attributes:
    vocabulary: The tokenizer.
    template: The template.
  """

  vocabulary: vocabularies.TokenizerVocabulary
  template: chat_template.ChatTemplate

  def render(
      self,
      messages: Sequence[Mapping[str, Any]],
      tools: Sequence[Any] | None = None,
      variables: Mapping[str, Any] | None = None,
      place: str = '',
      add_generation_prompt: bool = False,
  ) -> tuple[str, list[tuple[int, int]]]:
    """As `ChatTemplate.render`, with special tokens within messages marked."""
    if not self.vocabulary.special_tokens_in_text:
      messages, tools, variables = map(
          self._mark, (messages, tools, variables)
      )
    return self.template.render(
        messages, tools, variables, place, add_generation_prompt
    )

  def encode(self, parts: Sequence[str]) -> list[list[int]]:
    """The ids of the model for parts of one text, which `render` returned.

    They are those of the whole text, unless a token would reach from one part
    into the next: a model that is given the first part has then other tokens,
    and so has the example.
    """
    text = ''.join(parts)
    edges = list(itertools.accumulate(map(len, parts)))
    if _MARK in text:
      return [
          self._encode_marked(part, begins=end == len(part))
          for part, end in zip(parts, edges, strict=True)
      ]
    whole = self._encode(self._tokenizer, text)
    found = [[] for _ in parts]
    number = 0
    for token, (start, end) in zip(whole.ids, whole.offsets, strict=True):
      while number < len(parts) - 1 and start >= edges[number]:
        number += 1
      if end > edges[number]:
        return [
            self._encode(self._reader(True, edge == len(part)), part).ids
            for part, edge in zip(parts, edges, strict=True)
        ]
      found[number].append(token)
    return found

  def end_turn(self, ids: Sequence[int]) -> list[int]:
    """The ids of an answer up to the token that ends its turn.

    That is the last one at which generation stops. If the template writes none,
    one is appended, in the place of the white space behind its own end: an
    answer without an end would never learn to stop.
    """
    for position in reversed(range(len(ids))):
      if ids[position] in self._ends:
        return list(ids[: position + 1])
    kept = list(ids)
    while kept and kept[-1] not in self._special_ids and (
        not self._tokenizer.decode(kept[-1:]).strip()
    ):
      kept.pop()
    return [*kept, self._ends[0]]

  @functools.cached_property
  def writes_ends(self) -> bool:
    """Whether the template ends answers as the vocabulary says they end."""
    says = lambda role: {'role': role, 'content': 'x'}
    text, _ = self.render([says('user'), says('assistant')])
    (ids,) = self.encode([text])
    return any(token in self._ends for token in ids[1:])

  @property
  def _tokenizer(self) -> Any:
    return self.vocabulary.tokenizer  # It knows special tokens.

  @functools.cached_property
  def _ends(self) -> tuple[int, ...]:
    """Ids of the model at which answers end."""
    offset = self.vocabulary.id_offset
    return tuple(x - offset for x in self.vocabulary.stop_ids)

  @functools.cached_property
  def _special_ids(self) -> Mapping[int, str]:
    added = self._tokenizer.get_added_tokens_decoder()
    return {i: token.content for i, token in added.items() if token.special}

  @functools.cached_property
  def _special_texts(self) -> re.Pattern[str]:
    longest_first = sorted(self._special_ids.values(), key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')

  def _mark(self, value: Any) -> Any:
    """The value with a mark in every special token of its texts."""
    if isinstance(value, str):
      value = value.replace(_MARK, '')
      marked = lambda found: f'{found[0][0]}{_MARK}{found[0][1:]}'
      return self._special_texts.sub(marked, value)
    if isinstance(value, Mapping):
      return {key: self._mark(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
      return [self._mark(x) for x in value]
    return value

  def _encode(self, tokenizer: Any, text: str) -> Any:
    file = self.vocabulary.tokenizer_file
    with tokenizer_file.refused(f'{file} fails on a text'):
      return tokenizer.encode(text, add_special_tokens=False)

  def _reader(self, special_tokens: bool, begins: bool) -> Any:
    """A tokenizer, as of `vocabularies.read_tokenizer`."""
    file = self.vocabulary.tokenizer_file
    return vocabularies.read_tokenizer(file, special_tokens, begins)

  def _encode_marked(self, part: str, begins: bool) -> list[int]:
    """Ids of a text, of whose special tokens those with a mark are text.

    `begins` says whether it is the beginning of a row.
    """
    ids, start = [], 0
    for found in itertools.chain(self._special_texts.finditer(part), [None]):
      text = part[start : found.start() if found else None]
      plain = text.replace(_MARK, '')
      texts = self._reader(False, begins and start == 0)
      ids += self._encode(texts, plain).ids
      if found:
        ids.append(self._tokenizer.token_to_id(found[0]))
        start = found.end()
    return ids


def row(
    vocabulary: vocabularies.TokenizerVocabulary,
    inputs: Sequence[int],
    targets: Sequence[int],
    weights: Sequence[int] | None = None,
    place: str = '',
) -> rows.TokenRow:
  """An example of ids of the model.

  Args:
    vocabulary: Vocabulary of the model.
    inputs: What is given; may be empty.
    targets: What is learned.
    weights: As in `rows.TokenRow`.
    place: As in `rows.TokenRow`.

  Raises:
    errors.UserError: The embedding of the model lacks an id.
  """
  return rows.TokenRow(
      {
          'inputs': tuple(vocabulary.in_data_sets(inputs)),
          'targets': tuple(vocabulary.in_data_sets(targets)),
      },
      weights and tuple(weights),
      place,
  )


def make(
    vocabulary: vocabularies.TokenizerVocabulary,
    template: str | None = None,
    date: str = chat_template.DATE,
) -> TemplateTokens:
  """The template of a model with its tokenizer.

  Args:
    vocabulary: Vocabulary of the model, whose template lies beside its
      `tokenizer.json`.
    template: 'chatml' or the path of a template, in place of the model's.
    date: The day that templates see as today.

  Raises:
    errors.UserError: There is no template, or it is broken.
  """
  folder = Path(vocabulary.tokenizer_file).expanduser().parent
  is_token = lambda x: vocabulary.tokenizer.token_to_id(x) is not None
  source, where = chat_template.find(folder, template, is_token)
  special = chat_template.special_tokens(folder)
  compiled = chat_template.ChatTemplate(source, special, date, where)
  return TemplateTokens(vocabulary, compiled)
