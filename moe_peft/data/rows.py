# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The row: one example before tokenisation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """One question with its answer.

  Attributes:
    inputs: what the model reads, instruction prefix included.
    targets: the right answer.
    words: dictionary words that occur in the row; all are of one split (word
      tasks only).
    choices: the possible answers (rank classification), empty otherwise.
  """

  inputs: str
  targets: str
  words: tuple[str, ...] = ()
  choices: tuple[str, ...] = ()
