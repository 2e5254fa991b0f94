# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The thread that makes an answer; conversations are in cli/own_rows_test."""

from concurrent import futures
import contextlib
import time
import types

from moe_peft.training import chatting


def test_an_answer_that_was_left_leaves_nothing_to_the_next_one(monkeypatch):
  """Nor its end, which may come when the answer is no longer heard."""
  talk = object.__new__(chatting.Chatter)
  talk.messages, talk._seed, talk._params = [], 0, None
  talk._setup = types.SimpleNamespace(context=contextlib.nullcontext)

  def generate(*_):
    time.sleep(0.05)  # The first token is waited for.
    for token in (5, 6, 7):
      talk._watch([token])

  talk._generate = generate
  end = futures.Future._invoke_callbacks
  monkeypatch.setattr(
      futures.Future, '_invoke_callbacks',
      lambda self: (time.sleep(0.1), end(self)),
  )
  answer = talk._stream([1])
  assert next(answer) == 5
  answer.close()
  assert list(talk._stream([1])) == [5, 6, 7]
