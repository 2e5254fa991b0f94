# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks that a task and a model mean the same by an id."""

from collections.abc import Mapping

import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import vocabularies as vocabularies_lib

# Vocabularies that encode this text as the same ids are taken for equal.
_PROBE = 'In 1984, 37 quick brown foxes jumped over lazy dogs; Größe? naïve!'


def check(
    name: str, vocabularies: Mapping[str, seqio.Vocabulary], num_rows: int
) -> None:
  """Checks that a task or mixture and a model mean the same by an id.

  Args:
    name: Task or mixture.
    vocabularies: Those of the model for `inputs` and `targets`.
    num_rows: Rows of the model's embedding.

  Raises:
    errors.UserError: They read a text as different ids, or texts may have ids
      that the embedding lacks; the message has both numbers.
  """
  features = catalog.get_task_or_mixture(name).output_features
  for feature, ours in vocabularies.items():
    if feature not in features:
      continue
    theirs = features[feature].vocabulary
    if isinstance(theirs, seqio.PassThroughVocabulary):
      continue  # Its rows are ids.
    if not _same_ids(theirs, ours):
      raise errors.UserError(
          f'{name!r} has another vocabulary ({type(theirs).__name__}) than the '
          f'model ({type(ours).__name__}): one text has different ids.',
          'VOCABULARY',
          'Give vocabulary = %VOCABULARY to the function that registers the '
          'task, or take a task of this vocabulary.',
      )
    _check_size(ours, num_rows)


def _check_size(vocabulary: seqio.Vocabulary, num_rows: int) -> None:
  if isinstance(vocabulary, vocabularies_lib.TokenizerVocabulary):
    token, size = vocabulary.last_in_texts
    what = f'The last token, {token!r}, has the id {size - 1}. '
  else:
    what, size = '', vocabulary.vocab_size
  if size > num_rows:
    raise errors.UserError(
        f'{what}The vocabulary has {size} ids, and the embedding of the model '
        f'{num_rows} rows.', 'VOCABULARY',
        'Take the tokenizer that the model was trained with.',
    )


def _same_ids(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
  # Two copies of one file are not equal objects.
  return one == other or (
      (one.encode(_PROBE), one.eos_id) == (other.encode(_PROBE), other.eos_id)
  )
