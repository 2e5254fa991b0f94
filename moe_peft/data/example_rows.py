# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples of every format as rows of a SeqIO task."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

import seqio

from moe_peft import errors
from moe_peft.data import chat
from moe_peft.data import examples
from moe_peft.data import formats
from moe_peft.data import messages
from moe_peft.data import metrics
from moe_peft.data import registration
from moe_peft.data import rows
from moe_peft.data import template_tokens
from moe_peft.data import token_tasks
from moe_peft.data import vocabularies

_logger = logging.getLogger(__name__)


def register(
    name: str,
    parsed: Mapping[str, Sequence[examples.Parsed]],
    row_format: formats.Format,
    options: chat.Options,
    metric_fns: Sequence[metrics.MetricFn],
    ranked: bool,
    vocabulary: seqio.Vocabulary,
    **settings: Any,
) -> None:
  """Registers a task of what was read.

  Args:
    name: Name of the task.
    parsed: Examples of each split.
    row_format: What they are.
    options: How conversations are learned.
    metric_fns: SeqIO metric functions.
    ranked: Whether the examples have choices.
    vocabulary: Vocabulary of the model.
    **settings: Settings of the record.

  Raises:
    errors.UserError: A row cannot be an example.
  """
  decoder = isinstance(vocabulary, vocabularies.TokenizerVocabulary)
  chats = None
  if _are_messages(parsed):
    chats = options.chat(vocabulary)
  else:
    options.check_text(row_format.says)
  splits = {
      split: _rows(
          found, vocabulary, chats, options.turns, f'{split} of {name}'
      )
      for split, found in parsed.items()
  }
  for split, found in splits.items():
    if not found:
      raise errors.UserError(
          f'No row of {split} has a question before its answer.',
          parsed[split][0].place, 'Give some that have.',
      )
  counts = ', '.join(f'{len(x):,} of {split}' for split, x in splits.items())
  how = f'; {chats.says()}' if chats else ''
  _logger.info('%s: %s, examples: %s%s.', name, row_format.says, counts, how)
  settings |= {
      'rows_fn': lambda: splits, 'vocabulary': vocabulary, 'chat': chats,
      'inputs_eos': row_format.inputs_end or not decoder,
  }
  if isinstance(next(iter(splits.values()))[0], rows.TokenRow):
    record = token_tasks.TokenRecord(name, **settings)
    token_tasks.add(record, tuple(splits), metric_fns)
  else:
    record = registration.TaskRecord(name, **settings)
    registration.add_rows(
        record, tuple(splits), metric_fns=metric_fns, ranked=ranked
    )


def as_tokens(
    parsed: Sequence[examples.Parsed],
    vocabulary: seqio.Vocabulary,
    conversations: chat.Chat | None,
    inputs_end: bool,
) -> list[rows.TokenRow]:
  """Examples as the tokens that a task of them has.

  Args:
    parsed: The examples.
    vocabulary: Vocabulary of the model.
    conversations: How conversations become tokens, if a task has said it.
    inputs_end: Whether the inputs of texts end with the end of a sequence.

  Raises:
    errors.UserError: A row cannot be an example, or there are conversations for
      a decoder without a chat template.
  """
  if conversations is None and _are_messages({'': parsed}):
    conversations = chat.Options().chat(vocabulary)
  found = _rows(parsed, vocabulary, conversations, None, 'the rows')
  end = (vocabulary.eos_id,)
  return [
      row if isinstance(row, rows.TokenRow) else rows.TokenRow(
          {
              'inputs': (*vocabulary.encode(row.inputs),
                         *(end if inputs_end else ())),
              'targets': (*vocabulary.encode(row.targets), *end),
          },
          place=row.place,
      )
      for row in found
  ]


def _are_messages(parsed: Mapping[str, Sequence[examples.Parsed]]) -> bool:
  (first, *_), *_ = parsed.values()
  if isinstance(first, examples.Preference):
    return not isinstance(first.prompt, str)
  return isinstance(first, messages.Conversation)


def _rows(
    parsed: Sequence[examples.Parsed],
    vocabulary: seqio.Vocabulary,
    conversations: chat.Chat | None,
    turns: str | None,
    what: str,
) -> list[rows.Row] | list[rows.TokenRow]:
  """Rows of examples, all of one kind.

  Args:
    parsed: The examples.
    vocabulary: Vocabulary of the model.
    conversations: How conversations become tokens; None for plain texts.
    turns: 'each' for every answer, where conversations are plain texts.
    what: What messages call the examples.

  Raises:
    errors.UserError: A row cannot be an example.
  """
  made, left_out = [], []
  for example in parsed:
    of_example = _rows_of(example, vocabulary, conversations, turns)
    if not of_example:  # A plain dialogue that begins with its only answer.
      left_out.append(example.place)
    if example.example_id is not None:
      of_example = [
          dataclasses.replace(row, example_id=example.example_id)
          for row in of_example
      ]
    made += of_example
  if left_out:
    _logger.info(
        'Left out of %s: %d of %d rows, without a question before the answer; '
        'the first is %s.', what, len(left_out), len(parsed), left_out[0],
    )
  return made


def _rows_of(
    example: examples.Parsed,
    vocabulary: seqio.Vocabulary,
    conversations: chat.Chat | None,
    turns: str | None,
) -> Sequence[Any]:
  """The rows of one example; a conversation may have several."""
  if isinstance(example, messages.Conversation):
    if conversations:
      return conversations.rows(example)
    return _dialogues(example, turns)
  if isinstance(example, examples.Preference):
    return [_preference(example, vocabulary, conversations)]
  if isinstance(example, examples.TokenIds):
    return [_tokens(example, vocabulary)]
  return [example]


def _dialogues(
    example: messages.Conversation, turns: str | None
) -> list[rows.Row]:
  """Answers with all that was said before as a plain text."""
  answers = example.answers if turns == chat.EACH else example.answers[-1:]
  return [
      rows.Row(
          messages.dialogue(example.messages[:number]),
          _said(example.messages[number]['content'], example.place),
          place=example.place,
      )
      for number in answers
      if number
  ]


def _said(answer: str, place: str) -> str:
  """The answer; raises errors.UserError if it calls tools and says nothing."""
  if not answer.strip():
    raise errors.UserError(
        'An answer calls tools and says nothing. Calls of tools are written by '
        'chat templates, which this model has not.', place,
        'Leave the row out, or take a model with a tokenizer.json.',
    )
  return answer


def _preference(
    example: examples.Preference,
    vocabulary: seqio.Vocabulary,
    conversations: chat.Chat | None,
) -> rows.TokenRow:
  texts = [example.prompt, example.chosen, example.rejected]
  if not isinstance(example.prompt, str):
    if conversations:
      return conversations.preference(example)
    texts = list(map(messages.dialogue, texts))
    texts[1:] = (_said(text, example.place) for text in texts[1:])
  prompt, *answers = (vocabulary.encode(text) for text in texts)
  # Inputs of T5 end with the end of a sequence.
  ends = not isinstance(vocabulary, vocabularies.TokenizerVocabulary)
  prompt = [*prompt, vocabulary.eos_id] if ends else prompt
  chosen, rejected = ([*x, vocabulary.eos_id] for x in answers)
  return rows.TokenRow(
      {'prompt': tuple(prompt), 'chosen': tuple(chosen),
       'rejected': tuple(rejected)},
      place=example.place,
  )


def _tokens(
    example: examples.TokenIds, vocabulary: seqio.Vocabulary
) -> rows.TokenRow:
  """A row whose beginning, as far as nothing is learned, is its inputs."""
  if not isinstance(vocabulary, vocabularies.TokenizerVocabulary):
    raise errors.UserError(
        'Rows of input_ids are for decoders with a tokenizer.json.',
        example.place, 'Give rows of inputs and targets, as texts.',
    )
  limit = vocabulary.vocab_size - vocabulary.id_offset  # As in the file.
  if (most := max(example.ids)) >= limit:
    raise errors.UserError(
        f'The id {most} is none of the vocabulary, which has {limit}.',
        example.place, 'Tokenize the rows with the tokenizer of the model.',
    )
  given = example.learned.index(True)
  inputs, targets = example.ids[:given], example.ids[given:]
  weights = tuple(map(int, example.learned[given:]))
  row = template_tokens.row(vocabulary, inputs, targets, weights, example.place)
  return dataclasses.replace(row, weights=None) if all(weights) else row
