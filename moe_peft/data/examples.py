# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a row of a user's file says, before it is tokenized.

One of four: a text and its answer (`rows.Row`), a conversation
(`messages.Conversation`), two answers to one prompt, or tokens.
"""

import dataclasses
from typing import Any

from moe_peft.data import messages as messages_lib
from moe_peft.data import rows


@dataclasses.dataclass(frozen=True)
class TokenIds:
  """A row that was tokenized elsewhere, as ids of the model.

  Attributes:
    ids: The tokens.
    learned: Whether the loss counts each of them.
    place: File and row, for messages.
    example_id: As in `rows.Row`.
  """

  ids: tuple[int, ...]
  learned: tuple[bool, ...]
  place: str = dataclasses.field(default='', compare=False)
  example_id: str | None = None

  @property
  def key(self) -> str:
    """What is given, if that is more than a token that begins all rows."""
    given = self.learned.index(True)
    return str(self.ids[:given] if given > 1 else self.ids)


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two answers to one prompt, the better and the worse.

  Attributes:
    prompt: A text, or messages.
    chosen: The better answer, of the kind of the prompt.
    rejected: The worse one.
    tools: As in `messages.Conversation`.
    place: File and row, for messages.
    example_id: As in `rows.Row`.
  """

  prompt: str | messages_lib.Messages
  chosen: str | messages_lib.Messages
  rejected: str | messages_lib.Messages
  tools: tuple[Any, ...] | None = None
  place: str = dataclasses.field(default='', compare=False)
  example_id: str | None = None

  @property
  def key(self) -> str:
    return str(self.prompt)


Parsed = rows.Row | messages_lib.Conversation | Preference | TokenIds
