# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of a user's file to examples, one function a format."""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import itertools
import os
from typing import Any

from moe_peft import errors
from moe_peft.data import examples
from moe_peft.data import messages as messages_lib
from moe_peft.data import rows

# The two prompts of Stanford Alpaca (tatsu-lab/stanford_alpaca, Apache-2.0):
# models that were trained on its rows know them word for word.
_ALPACA = (
    'Below is an instruction that describes a task. Write a response that '
    'appropriately completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Response:\n'
)
_ALPACA_WITH_INPUT = (
    'Below is an instruction that describes a task, paired with an input that '
    'provides further context. Write a response that appropriately completes '
    'the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n'
    '### Response:\n'
)
_NO_LOSS = -100  # The label of a token that is not learned, as in PyTorch.
# Columns of TRL: 1 at the tokens that are learned.
_LEARNED = ('completion_mask', 'assistant_masks')


@dataclasses.dataclass(frozen=True)
class Keys:
  """Columns of rows of inputs and targets.

  Attributes:
    inputs: Column of the inputs.
    targets: Column of the targets.
    choices: Column of the list of choices, or None.
    fixed_choices: The choices of all rows, empty where they have their own.
  """

  inputs: str = 'inputs'
  targets: str = 'targets'
  choices: str | None = None
  fixed_choices: tuple[str, ...] = ()

  @property
  def ranked(self) -> bool:
    """Whether rows have choices, which are ranked."""
    return bool(self.fixed_choices) or self.choices is not None


def _get(row: Mapping[str, Any], key: str, place: str) -> Any:
  """The value of a column; raises errors.UserError if the row lacks it."""
  if key not in row:
    near = difflib.get_close_matches(key, row, n=1)
    hint = f'Did you mean {near[0]!r}? ' if near else ''
    raise errors.UserError(
        f'There is no key {key!r}, but {sorted(row)}.', place,
        f'{hint}Every row needs it; inputs_key, targets_key and choices_key of '
        'register_task say which columns are read.',
    )
  return row[key]


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
  """The text of a column; raises errors.UserError if there is none."""
  value = _get(row, key, place)
  if not isinstance(value, str) or not value.strip():
    raise errors.UserError(
        f'{key!r} must be a nonempty string, not {value!r:.60}.', place
    )
  return value


def are_choices(choices: Any) -> bool:
  """Whether it is a list of two or more different texts."""
  return (
      isinstance(choices, (list, tuple))
      and all(isinstance(c, str) and c.strip() for c in choices)
      and len(set(choices)) == len(choices) > 1
  )


def pair(row: Mapping[str, Any], keys: Keys, place: str) -> rows.Row:
  """A row of inputs and targets, and perhaps of choices."""
  inputs, targets = (_text(row, k, place) for k in (keys.inputs, keys.targets))
  choices = keys.fixed_choices
  if keys.choices is not None:
    choices = _get(row, keys.choices, place)
    if not are_choices(choices):
      raise errors.UserError(
          f'{keys.choices!r} must be a list of two or more different nonempty '
          f'strings, not {choices!r:.60}.', place,
      )
  if choices and targets not in choices:
    raise errors.UserError(
        f'{keys.targets!r} is {targets!r}, which is none of the choices '
        f'{list(choices)}.', place,
    )
  return rows.Row(inputs, targets, choices=tuple(choices), place=place)


def prompt_completion(row: Mapping[str, Any], place: str) -> examples.Parsed:
  """A row of a prompt and its completion, texts or messages."""
  if isinstance(_get(row, 'prompt', place), str):
    prompt, completion = (
        _text(row, x, place) for x in ('prompt', 'completion')
    )
    return rows.Row(prompt, completion, place=place)
  prompt, completion = (
      messages_lib.messages(_get(row, x, place), x, place)
      for x in ('prompt', 'completion')
  )
  return messages_lib.conversation(
      [*prompt, *completion], row, place, given=len(prompt)
  )


def alpaca(row: Mapping[str, Any], place: str) -> rows.Row:
  """A row of an instruction, perhaps an input, and the output."""
  instruction, output = (
      _text(row, x, place) for x in ('instruction', 'output')
  )
  more = row.get('input')
  if more is not None and not isinstance(more, str):
    raise errors.UserError(f"'input' must be a text, not {more!r:.60}.", place)
  # One pass: braces in the row are no fields.
  prompt = (
      _ALPACA_WITH_INPUT.format(instruction=instruction, input=more)
      if more and more.strip() else _ALPACA.format(instruction=instruction)
  )
  return rows.Row(prompt, output, place=place)


def preference(row: Mapping[str, Any], place: str) -> examples.Preference:
  """A row of two answers; without a prompt, both begin with it."""
  chosen, rejected = (_get(row, x, place) for x in ('chosen', 'rejected'))
  prompt = row.get('prompt')
  if isinstance(chosen, str):
    chosen, rejected = (_text(row, x, place) for x in ('chosen', 'rejected'))
    if prompt is None:
      prompt, chosen, rejected = _common_text(chosen, rejected)
    else:
      prompt = _text(row, 'prompt', place)
  else:
    chosen, rejected = (
        _unweighted(x, name, place)
        for x, name in ((chosen, 'chosen'), (rejected, 'rejected'))
    )
    if isinstance(prompt, str):
      prompt = ({'role': 'user', 'content': prompt},)
    prompt = _unweighted(prompt or (), 'prompt', place)
    prompt, chosen, rejected = _common_messages(prompt, chosen, rejected)
  if not (prompt and chosen and rejected) or chosen == rejected:
    raise errors.UserError(
        "'chosen' and 'rejected' must be two different answers to one prompt.",
        place, 'Leave the row out.',
    )
  return examples.Preference(
      prompt, chosen, rejected, messages_lib.tools(row, place), place
  )


def _unweighted(value: Any, name: str, place: str) -> messages_lib.Messages:
  """Messages of a pair, of which the last answers are what is learned."""
  return tuple(
      {key: x for key, x in message.items() if key != 'weight'}
      for message in messages_lib.messages(value, name, place)
  )


def _common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
  """Prompt and answers of two texts, which begin with the prompt."""
  same = len(os.path.commonprefix([chosen, rejected]))
  # A word that both answers begin with in part belongs to them.
  same = max(chosen.rfind(' ', 0, same), chosen.rfind('\n', 0, same) + 1, 0)
  return chosen[:same], chosen[same:], rejected[same:]


def _common_messages(prompt, chosen, rejected):
  """The same of messages, whether or not the answers repeat the prompt."""
  if not prompt:
    equal = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)
    )
    same = len(list(equal))
    return chosen[:same], chosen[same:], rejected[same:]
  if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
  return prompt, chosen, rejected


def tokens(row: Mapping[str, Any], place: str) -> examples.TokenIds:
  """A row of `input_ids`, and perhaps of `labels` and of masks.

  Padding, where `attention_mask` is 0, is left out.
  """
  ids, labels = _ids_and_labels(row, place)
  learned = [label != _NO_LOSS for label in labels]
  for name in _LEARNED:
    if mask := _mask(row, name, len(ids), place):
      learned = [x and bool(y) for x, y in zip(learned, mask, strict=True)]
  if real := _mask(row, 'attention_mask', len(ids), place):
    ids, learned = (itertools.compress(x, real) for x in (ids, learned))
  found = examples.TokenIds(tuple(ids), tuple(learned), place)
  if not any(found.learned):
    raise errors.UserError(
        f"'labels' are {_NO_LOSS}, or masks 0, everywhere: nothing is learned.",
        place, 'Leave the row out.',
    )
  return found


def _ids_and_labels(
    row: Mapping[str, Any], place: str
) -> tuple[list[int], list[int]]:
  ids = _get(row, 'input_ids', place)
  labels = row.get('labels')
  labels = ids if labels is None else labels
  whole = lambda x: type(x) is int and 0 <= x < 2**31
  if not isinstance(ids, list) or not ids or not all(map(whole, ids)):
    raise errors.UserError(
        "'input_ids' must be a list of ids, whole numbers of at least 0.", place
    )
  if not isinstance(labels, list) or len(labels) != len(ids) or not all(
      label in (_NO_LOSS, token)
      for label, token in zip(labels, ids, strict=True)
  ):
    raise errors.UserError(
        f"'labels' must have, for each of the {len(ids)} ids, the id itself or "
        f'{_NO_LOSS}.', place, 'Do not shift them: that is done here.',
    )
  return ids, labels


def _mask(
    row: Mapping[str, Any], name: str, length: int, place: str
) -> Sequence[int] | None:
  """A column of 0 and 1 for each token, or None."""
  mask = row.get(name)
  if mask is None:
    return None
  if not isinstance(mask, list) or len(mask) != length or not all(
      type(x) in (int, bool) and x in (0, 1) for x in mask
  ):
    raise errors.UserError(
        f'{name!r} must have 0 or 1 for each of the {length} ids.', place
    )
  return mask


def text(row: Mapping[str, Any], place: str) -> rows.Row:
  """A row of a text, all of which is learned."""
  return rows.Row('', _text(row, 'text', place), place=place)
