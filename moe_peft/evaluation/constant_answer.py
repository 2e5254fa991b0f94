# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The figure of who always gives the same answer, to stand beside every other.

It is measured on the examples and with the metrics that the model was: the
most frequent target of tasks that generate; of tasks that score choices, the
best place among the choices (always the first, always the second, ...).
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from moe_peft.evaluation import metrics


def measure(
    task: seqio.Task, examples: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
  """Returns the value of each of a task's metrics.

  Args:
    task: the task.
    examples: the evaluated examples with their task features, as NumPy.
  """
  targets = [_target(task, example) for example in examples]
  values = {}
  for function in task.predict_metric_fns:
    values |= function(targets, _most_frequent(targets))
  for function in task.score_metric_fns:
    for scores in _places(targets):
      for name, value in function(targets, scores).items():
        values[name] = max(value, values.get(name, value))
  return {name: float(_value(value)) for name, value in values.items()}


def _target(task: seqio.Task, example: Mapping[str, Any]) -> Any:
  """The postprocessed target, as SeqIO's evaluator makes it."""
  if 'targets_pretokenized' in example:
    text = example['targets_pretokenized'].decode()
  else:
    vocabulary = task.output_features['targets'].vocabulary
    text = vocabulary.decode(example['targets'].tolist())
  return task.postprocess_fn(text, example=example, is_target=True)


def _most_frequent(targets: Sequence[Any]) -> list[str]:
  answers = [t if isinstance(t, str) else t[0] for t in targets]
  ((answer, _),) = collections.Counter(answers).most_common(1)
  return [answer] * len(answers)


def _places(targets: Sequence[metrics.RankTarget]) -> list[list[float]]:
  """Scores that prefer the first choice, the second one, and so on."""
  return [
      [float(target.choice == place) for target in targets]
      for place in range(1 + max(target.choice for target in targets))
  ]


def _value(metric: Any) -> Any:
  return getattr(metric, 'value', metric)
