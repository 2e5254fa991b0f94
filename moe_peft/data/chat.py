# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations as the tokens of a model: what is given, what is learned.

A template may write a message differently once more messages follow (Qwen 3
drops the reasoning of earlier answers), so by default every answer is an
example of its own: its prompt is what inference shows the model there, and its
targets are what the template writes behind it, up to the end of the turn.
"""

import dataclasses
import os

import seqio

from moe_peft import errors
from moe_peft.data import chat_template
from moe_peft.data import examples
from moe_peft.data import messages as messages_lib
from moe_peft.data import rows as rows_lib
from moe_peft.data import template_tokens
from moe_peft.data import vocabularies

_ARGUMENT = 'local.register_task.'
EACH, LAST, TOGETHER = TURNS = ('each', 'last', 'together')
_HOW = {
    EACH: 'one example for each answer',
    LAST: 'one example for the last answer of each row',
    TOGETHER: 'all answers of a row in one example',
}


@dataclasses.dataclass(frozen=True)
class Chat:
  """How conversations become examples.

  Attributes:
    tokens: What writes and reads the tokens of the template.
    turns: Which answers are learned in which examples: 'each', 'last' or
      'together'.
    learn_all: Whether the loss counts all tokens of a conversation.
  """

  tokens: template_tokens.TemplateTokens
  turns: str = EACH
  learn_all: bool = False

  def says(self) -> str:
    """How rows are learned, the end of a sentence."""
    how = 'all of each row' if self.learn_all else _HOW[self.turns]
    says = f'{how}, by the chat template {self.tokens.template.where}'
    if not self.tokens.writes_ends:
      says += ', which lacks the end of a sequence: it is appended to answers'
    return says

  def prompt(self, conversation: messages_lib.Conversation) -> tuple[int, ...]:
    """The tokens behind which the model answers."""
    text, _ = self._render(conversation, add_generation_prompt=True)
    (ids,) = self.tokens.encode([text])
    row = template_tokens.row(self.tokens.vocabulary, ids, ())
    return row.features['inputs']

  def rows(
      self, conversation: messages_lib.Conversation
  ) -> list[rows_lib.TokenRow]:
    """The examples of a conversation.

    Raises:
      errors.UserError: The template refuses the messages, or writes them so
        that an answer cannot be told from what stands before it.
    """
    if self.learn_all:
      text, _ = self._render(conversation)
      (ids,) = self.tokens.encode([text])
      return [self._row((), ids, None, conversation)]
    if self.turns == TOGETHER:
      return [self._together(conversation)]
    answers = conversation.answers
    answers = answers if self.turns == EACH else answers[-1:]
    return [self._answer(conversation, number) for number in answers]

  def preference(self, pair: examples.Preference) -> rows_lib.TokenRow:
    """The example of two answers to one prompt, all of them messages.

    Raises:
      errors.UserError: As `rows`, or an answer is none of the assistant's, or
        more than the last message differs.
    """
    chosen, rejected = (
        messages_lib.Conversation(
            (*pair.prompt, *answer), pair.tools, given=len(pair.prompt),
            place=pair.place,
        )
        for answer in (pair.chosen, pair.rejected)
    )
    if not (chosen.answers and rejected.answers):
      raise errors.UserError(
          'The chosen or the rejected answer has no message of the role '
          f'{messages_lib.ASSISTANT!r}.', pair.place, 'Leave the row out.',
      )
    chosen, rejected = (
        self._answer(x, x.answers[-1]) for x in (chosen, rejected)
    )
    if chosen.features['inputs'] != rejected.features['inputs']:
      raise errors.UserError(
          'The chosen and the rejected answer have different prompts.',
          pair.place, 'Only the last message may differ.',
      )
    return rows_lib.TokenRow(
        {
            'prompt': chosen.features['inputs'],
            'chosen': chosen.features['targets'],
            'rejected': rejected.features['targets'],
        },
        place=pair.place,
    )

  def _render(self, conversation, until=None, **options):
    return self.tokens.render(
        conversation.messages[:until], conversation.tools,
        conversation.variables, conversation.place, **options,
    )

  def _parts(self, conversation, number: int) -> tuple[str, str]:
    """What stands before an answer, and the answer with its end."""
    prompt, _ = self._render(conversation, number, add_generation_prompt=True)
    whole, _ = self._render(conversation, number + 1)
    if whole.startswith(prompt):
      return prompt, whole[len(prompt) :]
    # The prompt itself goes on: it opens a part for reasoning, say. Then the
    # answer is what the template writes from where the two part.
    before, _ = self._render(conversation, number)
    if prompt.startswith(before) and whole.startswith(before):
      same = len(os.path.commonprefix([prompt, whole]))
      return prompt, whole[max(same, len(before)) :]
    same = len(os.path.commonprefix([prompt, whole]))
    raise errors.UserError(
        'The chat template writes what stands before an answer differently '
        f'once the answer is there: {prompt[same:]!r:.60} becomes '
        f'{whole[same:]!r:.60}.', conversation.place,
        'Leave the row out, or give another template by '
        'local.register_task.template.',
    )

  def _answer(self, conversation, number: int) -> rows_lib.TokenRow:
    prompt, answer = self._parts(conversation, number)
    prompt, answer = self.tokens.encode([prompt, answer])
    return self._row(
        prompt, self.tokens.end_turn(answer), None, conversation
    )

  def _together(self, conversation) -> rows_lib.TokenRow:
    """All answers in one row; everything else has no weight."""
    if not self.tokens.writes_ends:
      raise errors.UserError(
          'The chat template ends answers with no token at which generation '
          'stops.', 'local.register_task.turns',
          "Set it to 'each', or add the token that ends a turn to "
          'vocabularies.TokenizerVocabulary.stop_ids.',
      )
    whole, spans = self._render(conversation)
    # Marks tell who speaks, and not which answers are given.
    said = [
        x for x in conversation.messages if x['role'] == messages_lib.ASSISTANT
    ]
    answers_given = len(said) > len(conversation.answers)
    if not self.tokens.template.marks_answers or answers_given:
      spans = self._found_spans(conversation, whole)
    edges = [0, *(edge for span in spans for edge in span), len(whole)]
    parts = self.tokens.encode([
        whole[start:end] for start, end in zip(edges, edges[1:], strict=False)
    ])
    ids, weights = [], []
    for number, part in enumerate(parts):
      is_answer = number % 2 == 1
      # What the template writes behind the end of a turn is not learned.
      end = len(self.tokens.end_turn(part)) if is_answer else 0
      weights += [1] * end + [0] * (len(part) - end)
      ids += part
    if not any(weights):
      raise errors.UserError(
          'The template marks no answer.', conversation.place,
          "Set local.register_task.turns = 'each'.",
      )
    return self._row((), ids, tuple(weights), conversation)

  def _found_spans(self, conversation, whole: str) -> list[tuple[int, int]]:
    """Where the answers are, if earlier messages are written as before."""
    spans = []
    for number in conversation.answers:
      prompt, answer = self._parts(conversation, number)
      if not whole.startswith(prompt + answer):
        raise errors.UserError(
            'The chat template writes earlier messages differently once more '
            'follow, so not all answers of this row can be learned together.',
            conversation.place, "Set local.register_task.turns = 'each'.",
        )
      spans.append((len(prompt), len(prompt + answer)))
    return spans

  def _row(self, inputs, targets, weights, conversation) -> rows_lib.TokenRow:
    return template_tokens.row(
        self.tokens.vocabulary, inputs, targets, weights, conversation.place
    )


@dataclasses.dataclass(frozen=True)
class Options:
  """How conversations are learned; see `local.register_task`."""

  turns: str | None = None
  loss: str = 'answers'
  template: str | None = None
  chat_date: str = chat_template.DATE

  def check(self) -> None:
    """Raises errors.UserError for a value that does not exist."""
    for name, known in (('turns', (None, *TURNS)),
                        ('loss', ('answers', 'all'))):
      if getattr(self, name) not in known:
        raise errors.UserError(
            f'{getattr(self, name)!r} is none of '
            f'{", ".join(map(str, known))}.', f'{_ARGUMENT}{name}',
        )

  def check_text(self, says: str) -> None:
    """Raises errors.UserError for what only conversations have.

    Args:
      says: What the rows are instead.
    """
    defaults = Options()
    for name in ('turns', 'loss', 'template'):
      if (value := getattr(self, name)) != getattr(defaults, name):
        raise errors.UserError(
            f'{name} = {value!r} is for conversations; the rows are {says}.',
            f'{_ARGUMENT}{name}', 'Leave it out.',
        )

  def chat(self, vocabulary: seqio.Vocabulary) -> Chat | None:
    """The chats of a model, or None for vocabularies without templates."""
    if not isinstance(vocabulary, vocabularies.TokenizerVocabulary):
      only = {'template': self.template is not None,
              'loss': self.loss == 'all',
              'turns': self.turns == TOGETHER}
      for name in filter(only.get, only):
        raise errors.UserError(
            f'{name} = {getattr(self, name)!r} is for models with a '
            'tokenizer.json.', f'{_ARGUMENT}{name}', 'Leave it out.',
        )
      return None
    tokens = template_tokens.make(vocabulary, self.template, self.chat_date)
    return Chat(tokens, self.turns or EACH, self.loss == 'all')
