# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What always giving the same answer would score, for comparison.

It is measured on the same examples and with the same metrics as the model. The
answer is the most frequent target of tasks that generate, and the best place
among the choices (always the first, always the second, ...) of tasks that score
them.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio


def measure(
    task: seqio.Task, examples: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
  """Returns the value of each of a task's metrics.

  What no answer alone decides has none: metrics that take auxiliary values of
  the model, and metrics of scores whose examples do not say which choice they
  are (`idx`, as `ranking.rank_classification` adds it).

  Args:
    task: The task.
    examples: The evaluated examples with their task features, as NumPy.
  """
  examples = list(examples)
  texts = [_target_text(task, example) for example in examples]

  def postprocessed(texts: Sequence[str], is_target: bool) -> list[Any]:
    """As SeqIO's evaluator does it, targets and predictions alike."""
    return [
        task.postprocess_fn(text, example=example, is_target=is_target)
        for text, example in zip(texts, examples, strict=True)
    ]

  targets = postprocessed(texts, is_target=True)
  values = {}
  if task.predict_metric_fns:
    ((answer, _),) = collections.Counter(texts).most_common(1)
    predictions = postprocessed([answer] * len(texts), is_target=False)
    for function in task.predict_metric_fns:
      values |= function(targets, predictions)
  for function in task.score_metric_fns:
    for scores in _places(examples):
      for name, value in function(targets, scores).items():
        values[name] = max(value, values.get(name, value), key=_value)
  return {name: float(_value(value)) for name, value in values.items()}


def _target_text(task: seqio.Task, example: Mapping[str, Any]) -> str:
  if 'targets_pretokenized' in example:
    return example['targets_pretokenized'].decode()
  vocabulary = task.output_features['targets'].vocabulary
  return vocabulary.decode(example['targets'].tolist())


def _places(examples: Sequence[Mapping[str, Any]]) -> list[list[float]]:
  """Scores that prefer the first choice, the second one, and so on."""
  if any(np.size(example.get('idx')) != 2 for example in examples):
    return []
  choices = [int(example['idx'][1]) for example in examples]
  return [
      [float(choice == place) for choice in choices]
      for place in range(1 + max(choices))
  ]


def _value(metric: Any) -> Any:
  return getattr(metric, 'value', metric)
