# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What TASK_FEATURE_LENGTHS leaves of the questions of an evaluation."""

from collections.abc import Mapping

import seqio

from moe_peft.data import ranking

# At most so many answer choices are looked at.
_LOOKED_AT = 4_000


def questions_cut(
    task: seqio.Task, split: str, lengths: Mapping[str, int]
) -> dict[str, float] | None:
  """What TASK_FEATURE_LENGTHS takes from a task that does without what it cuts.

  Args:
    task: A task of a cache.
    split: Its split; the first questions are looked at, some thousand choices.
    lengths: TASK_FEATURE_LENGTHS.

  Returns:
    Percent of the questions that are left out because of a choice longer than
    `targets`, and of the others those that lose the beginning of their
    `inputs`; None for tasks that leave out nothing.
  """
  if ranking.leave_out_long_choices not in task.preprocessors:
    return None
  whole = task.get_dataset(None, split, use_cached=True, shuffle=False)
  longest: dict[int, dict[str, int]] = {}
  for example in whole.take(_LOOKED_AT).as_numpy_iterator():
    question = int(example['idx'][0])
    sizes = longest.setdefault(question, dict.fromkeys(lengths, 0))
    for feature in lengths:
      sizes[feature] = max(sizes[feature], len(example[feature]))
  kept = [s for s in longest.values() if s['targets'] <= lengths['targets']]
  cut = sum(s['inputs'] > lengths['inputs'] for s in kept)
  return {
      'left_out': 100 * (1 - len(kept) / max(len(longest), 1)),
      'inputs_cut': 100 * cut / max(len(kept), 1),
  }


# A task that loses more percent of its questions is named.
_MUCH = 5
_WORDS = {
    'left_out': 'of the questions are left out, a choice is too long',
    'inputs_cut': 'of the questions lose the beginning of their inputs',
}


def warning(
    cut: Mapping[str, Mapping[str, float]],
    split: str,
    lengths: Mapping[str, int],
) -> str:
  """One line that names the tasks of which much is cut; empty if none is.

  Args:
    cut: By task, what `questions_cut` returns.
    split: The evaluated split.
    lengths: TASK_FEATURE_LENGTHS.
  """
  parts = [
      f'{task} ({percent[kind]:.0f} % {words})'
      for kind, words in _WORDS.items()
      for task, percent in cut.items()
      if percent[kind] > _MUCH
  ]
  if not parts:
    return ''
  return (
      f'warning: TASK_FEATURE_LENGTHS = {dict(lengths)} is too short for the '
      f'{split} rows of {", ".join(parts)}; figures are those of the rest.'
  )
