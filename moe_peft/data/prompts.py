# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What people say as the ids that a trained model reads."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import seqio

from moe_peft.data import catalog
from moe_peft.data import chat
from moe_peft.data import messages
from moe_peft.data import registration
from moe_peft.data import text_files


@dataclasses.dataclass(frozen=True)
class Prompts:
  """How a model is asked.

  Attributes:
    vocabulary: Vocabulary of its inputs.
    chats: Its conversations, or None where they are plain texts.
    ends: Whether inputs end with the end of a sequence.
  """

  vocabulary: seqio.Vocabulary
  chats: chat.Chat | None
  ends: bool

  def of_text(self, text: str) -> list[int]:
    """The ids of a text, as tasks of texts write their inputs."""
    end = [self.vocabulary.eos_id] if self.ends else []
    return [*self.vocabulary.encode(text), *end]

  def of_messages(
      self,
      found: Sequence[Mapping[str, Any]],
      tools: Sequence[Any] | None = None,
      place: str = '',
  ) -> list[int]:
    """The ids of a conversation, behind which an answer comes.

    Raises:
      errors.UserError: The chat template refuses the messages.
    """
    if self.chats is None:
      return self.of_text(messages.dialogue(found))
    conversation = messages.Conversation(
        tuple(found), tools and tuple(tools), place=place
    )
    return list(self.chats.prompt(conversation))

  def of_line(self, line: str, place: str) -> list[int]:
    """The ids of what a user says in a line, or of messages as JSON.

    Messages are a list, or an object with `messages` and perhaps `tools`.

    Raises:
      errors.UserError: The messages are none, or the template refuses them.
    """
    if not line.lstrip().startswith(('[{', '{"')):
      return self.of_messages([{'role': 'user', 'content': line}], None, place)
    row = text_files.parse(line, place, 'Write a text, or messages as JSON.')
    row = {'messages': row} if isinstance(row, list) else row
    found = messages.messages(row.get('messages'), 'messages', place)
    return self.of_messages(found, messages.tools(row, place), place)


def of_task(name: str, vocabulary: seqio.Vocabulary, talks: bool) -> Prompts:
  """The prompts of a model that was trained on a task or mixture.

  Args:
    name: Name of the task or mixture; conversations are those of its tasks.
    vocabulary: Vocabulary of the inputs of the model.
    talks: Whether conversations are asked for.

  Raises:
    errors.UserError: The model has no chat template.
  """
  ends = catalog.inputs_end(name)
  records = map(registration.RECORDS.get, catalog.task_names(name))
  known = [record.chat for record in records if record and record.chat]
  if not talks or known:
    return Prompts(vocabulary, known[0] if known else None, ends)
  return Prompts(vocabulary, chat.Options().chat(vocabulary), ends)
