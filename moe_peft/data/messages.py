# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations as people store them: messages with roles.

`{"messages": [{"role": "user", "content": "..."}, ...]}`, and ShareGPT's
`{"conversations": [{"from": "human", "value": "..."}, ...]}`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from moe_peft import errors
from moe_peft.data import text_files

Messages = tuple[Mapping[str, Any], ...]
ASSISTANT = 'assistant'
# What templates are given by their own names.
_GIVEN = {'messages', 'tools', 'add_generation_prompt', 'self'}
_SHAREGPT_ROLES = {
    'human': 'user', 'user': 'user', 'gpt': ASSISTANT, 'assistant': ASSISTANT,
    'chatgpt': ASSISTANT, 'bing': ASSISTANT, 'bard': ASSISTANT,
    'model': ASSISTANT, 'system': 'system', 'tool': 'tool',
    'observation': 'tool', 'function_response': 'tool',
}


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages, and what else a chat template may be given.

  Attributes:
    messages: Objects with `role` and `content`, a text; more for tool calls.
      An answer with `weight` 0 is not learned, as in OpenAI's files, unless
      the loss counts everything.
    tools: Descriptions of tools, or None.
    variables: Further variables of the template.
    given: Number of messages at the beginning that are not learned, whoever
      speaks.
    place: File and row, for messages to users.
    example_id: As in `rows.Row`.
  """

  messages: Messages
  tools: tuple[Any, ...] | None = None
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  given: int = 0
  place: str = dataclasses.field(default='', compare=False)
  example_id: str | None = None

  @property
  def key(self) -> str:
    """What is before the first answer: equal ones are in one split."""
    first = next(
        number for number, message in enumerate(self.messages)
        if number >= self.given and message['role'] == ASSISTANT
    )
    return json.dumps(self.messages[:first], sort_keys=True, default=str)

  @property
  def answers(self) -> tuple[int, ...]:
    """Numbers of the messages that are learned."""
    return tuple(
        number
        for number, message in enumerate(self.messages)
        if number >= self.given
        and message['role'] == ASSISTANT
        and message.get('weight', 1)
    )


def of_messages(row: Mapping[str, Any], place: str) -> Conversation:
  """The conversation of a row with `messages`."""
  if 'messages' not in row:
    raise errors.UserError("There is no key 'messages'.", place)
  found = messages(row['messages'], 'messages', place)
  return conversation(found, row, place)


def of_sharegpt(row: Mapping[str, Any], place: str) -> Conversation:
  """The conversation of a row with `conversations`."""
  turns = _of_columns(row.get('conversations'), 'conversations', place)
  if isinstance(turns, list) and all(isinstance(x, dict) for x in turns):
    renamed = []
    for turn in turns:
      if 'role' in turn:  # Some files have the names of messages.
        renamed.append(turn)
        continue
      role = turn.get('from')
      if not isinstance(role, str) or role not in _SHAREGPT_ROLES:
        raise errors.UserError(
            f"'from' is {role!r:.40}, which is none of "
            f'{", ".join(_SHAREGPT_ROLES)}.', place,
        )
      renamed.append({
          'role': _SHAREGPT_ROLES[role], 'content': turn.get('value'),
          'weight': turn.get('weight'),
      })
    turns = renamed
  found = messages(turns, 'conversations', place)
  if isinstance(row.get('system'), str) and row['system'].strip():
    found = ({'role': 'system', 'content': row['system']}, *found)
  return conversation(found, row, place)


def conversation(
    found: Sequence[Mapping[str, Any]],
    row: Mapping[str, Any],
    place: str,
    given: int = 0,
) -> Conversation:
  """A conversation with what else its row says.

  Args:
    found: Its messages, checked.
    row: All columns.
    place: Place of the row.
    given: As in `Conversation`.

  Raises:
    errors.UserError: No message is to be learned, or another column is wrong.
  """
  result = Conversation(
      tuple(found), tools(row, place), _variables(row, place), given, place
  )
  if not result.answers:
    raise errors.UserError(
        f'No message to learn is of the role {ASSISTANT!r}; the roles are '
        f'{[x["role"] for x in found]!s:.100}. Nothing is learned.', place,
        'Leave the row out.',
    )
  return result


def _variables(row: Mapping[str, Any], place: str) -> dict[str, Any]:
  """What a row gives its chat template, checked."""
  variables = row.get('chat_template_kwargs') or {}
  if not isinstance(variables, dict):
    raise errors.UserError(
        f"'chat_template_kwargs' must be an object, not {variables!r:.60}.",
        place,
    )
  if taken := _GIVEN & variables.keys():
    raise errors.UserError(
        f"'chat_template_kwargs' sets {min(taken)!r}, which is given anyway.",
        place, 'Leave it out.',
    )
  return variables


def messages(value: Any, key: str, place: str) -> Messages:
  """Messages, checked; contents in parts become texts.

  Args:
    value: What the file holds, a list of objects.
    key: Name of the column, for messages to users.
    place: Place of the row.

  Raises:
    errors.UserError: It is no such list.
  """
  value = _of_columns(value, key, place)
  if not isinstance(value, (list, tuple)):
    raise errors.UserError(
        f'{key!r} must be a list of messages, not {value!r:.60}.', place
    )
  return tuple(
      _message(x, f'message {number} of {key!r}', place)
      for number, x in enumerate(value, start=1)
  )


def _of_columns(value: Any, key: str, place: str) -> Any:
  """Lists of objects as older versions of the library `datasets` keep them."""
  if not isinstance(value, dict) or not value or not all(
      isinstance(x, list) for x in value.values()
  ):
    return value
  lengths = {name: len(x) for name, x in value.items()}
  if len(set(lengths.values())) > 1:
    raise errors.UserError(
        f'The columns of {key!r} differ in length: {lengths!s:.100}.', place
    )
  rows = zip(*value.values(), strict=True)
  return [dict(zip(value, row, strict=True)) for row in rows]


def _message(value: Any, which: str, place: str) -> dict[str, Any]:
  if not isinstance(value, dict) or not isinstance(value.get('role'), str):
    raise errors.UserError(
        f'The {which} must be an object with a role and a content, not '
        f'{value!r:.60}.', place,
    )
  # Tables have a column for what only some messages have.
  found = {k: x for k, x in value.items() if x is not None}
  content = found.get('content', '')
  if isinstance(content, list):
    parts = [
        x['text'] for x in content
        if isinstance(x, dict) and isinstance(x.get('text'), str)
    ]
    if len(parts) < len(content):
      raise errors.UserError(
          f'The {which} has parts that are no texts.', place,
          'Only text is read.',
      )
    content = ''.join(parts)
  calls = found.get('tool_calls') or []
  if not isinstance(calls, list) or not all(isinstance(x, dict) for x in calls):
    raise errors.UserError(
        f'tool_calls of the {which} must be a list of objects, not '
        f'{calls!r:.60}.', place,
    )
  if found['role'] == ASSISTANT:
    _check_weight(found.get('weight', 1), which, place)
  empty = found['role'] == ASSISTANT and not calls
  if not isinstance(content, str) or (empty and not content.strip()):
    raise errors.UserError(
        f'The content of the {which} must be a nonempty text, not '
        f'{value.get("content")!r:.60}.', place,
    )
  return {**found, 'content': content}


def _check_weight(weight: Any, which: str, place: str) -> None:
  if type(weight) not in (bool, int, float) or weight not in (0, 1):
    raise errors.UserError(
        f'The weight of the {which} must be 0 or 1, not {weight!r:.60}.', place
    )


def tools(row: Mapping[str, Any], place: str) -> tuple[Any, ...] | None:
  """The tools that a row describes: a list, or a text of JSON that holds one.

  Raises:
    errors.UserError: It is neither.
  """
  value = row.get('tools')
  if isinstance(value, str) and value.strip():
    value = text_files.parse(
        value, place, "'tools' must be a list, or a text of JSON that holds it."
    )
  if not value:
    return None
  if not isinstance(value, list):
    raise errors.UserError(
        f"'tools' must be a list, not {value!r:.60}.", place
    )
  return tuple(value)


def dialogue(found: Sequence[Mapping[str, Any]]) -> str:
  """Messages as a plain text, for models without a chat template, as T5.

  One message stands alone; of several each is named by who said it.
  """
  if len(found) == 1:
    return found[0]['content']
  return '\n'.join(f'{x["role"]}: {x["content"]}' for x in found)
