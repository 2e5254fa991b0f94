# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated text; all values are percentages, 0 to 100.

They have SeqIO's signature `(targets, predictions)`, lists of strings; a target
may also be a list of accepted answers. Those of scored text are in ranking.py.
"""

import collections
from collections.abc import Callable, Sequence
import difflib
import functools
import re
import string
import types
from typing import Any

import numpy as np
import seqio

from moe_peft import errors
from moe_peft.data import packages


class RowMean(float):
  """A percentage that is the mean of rows, and what each row had.

  A number to everybody who does not ask for more, SeqIO and T5X included.

  Attributes:
    rows: <float>[num_rows], the scores from 0 to 1 in the order of the rows.
  """

  rows: Sequence[float]

  def __new__(cls, rows: Sequence[float]):
    """Takes the scores of the rows, at least one."""
    self = super().__new__(cls, 100.0 * float(np.mean(rows)))
    self.rows = rows
    return self

  def __getnewargs__(self):  # Of copies, which would be made of the number.
    return (self.rows,)


Target = str | Sequence[str]
MetricFn = Callable[..., dict[str, float]]


def _references(target: Target) -> Sequence[str]:
  return (target,) if isinstance(target, str) else target


def check_lengths(targets: Sequence[Any], outputs: Sequence[Any]) -> None:
  """Raises ValueError unless there are targets, and as many outputs."""
  if not len(targets) or len(targets) != len(outputs):
    raise ValueError(
        f'{len(targets)} targets and {len(outputs)} outputs of the model; '
        'a metric needs at least one, and equally many.'
    )


def _mean(score: Callable[[Sequence[str], str], float]) -> MetricFn:
  """Makes a metric: the mean over examples of a score from 0 to 1.

  Args:
    score: Takes the accepted answers of an example and the prediction.
  """

  @functools.wraps(score)
  def metric(
      targets: Sequence[Target], predictions: Sequence[str]
  ) -> dict[str, float]:
    check_lengths(targets, predictions)
    scores = [
        score(_references(target), prediction)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return {score.__name__: RowMean(scores)}

  del metric.__wrapped__  # SeqIO reads the names of the arguments.
  return metric


@_mean
def exact_match(references, prediction):
  """Percentage of predictions that equal a target, outer spaces aside."""
  return prediction.strip() in [r.strip() for r in references]


@_mean
def accuracy(references, prediction):
  """Percentage of generated labels that are right, case and spaces aside."""
  return prediction.strip().lower() in [r.strip().lower() for r in references]


def last_number(text: str) -> float | None:
  """The last number of a text, commas between thousands aside, or None."""
  found = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
  return float(found[-1].replace(',', '')) if found else None


def last_option(text: str) -> str | None:
  """The last letter A to E that stands alone, or None: `(C)`, `is C.`."""
  found = re.findall(r'\b[A-E]\b', text)
  return found[-1] if found else None


# Metrics that read an answer out of a text -> what it is, its reader.
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    'numeric_accuracy': ('number', last_number),
    'option_accuracy': ('option A to E', last_option),
}


def _answers(metric: str, target: Target) -> list[Any]:
  """What a target's texts say, those that say nothing left out.

  Raises:
    errors.UserError: None says anything, so that no prediction is right.
  """
  what, read = _READERS[metric]
  references = _references(target)
  answers = [answer for r in references if (answer := read(r)) is not None]
  if not answers:
    raise errors.UserError(
        f'The target {" or ".join(references)!r:.80} has no {what}.', metric,
        'Give it one, or choose another metric, such as exact_match.',
    )
  return answers


def check_target(functions: Sequence[MetricFn], target: Target) -> None:
  """Checks that metrics can judge predictions of a target.

  Args:
    functions: The metrics.
    target: The target.

  Raises:
    errors.UserError: They cannot.
  """
  for function in functions:
    if function.__name__ in _READERS:
      _answers(function.__name__, target)


@_mean
def numeric_accuracy(references, prediction):
  """Percentage of predictions whose last number is that of a target.

  Numbers are equal within 0.001, as in arXiv 2304.01933. A prediction without
  a number is wrong; a target without one raises errors.UserError.
  """
  wanted = _answers('numeric_accuracy', references)
  number = last_number(prediction)
  return number is not None and any(abs(number - w) <= 1e-3 for w in wanted)


@_mean
def option_accuracy(references, prediction):
  """Percentage of predictions whose last option, A to E, is that of a target.

  A target without an option raises errors.UserError.
  """
  return last_option(prediction) in _answers('option_accuracy', references)


def _answer_tokens(text: str) -> list[str]:
  """SQuAD's normalization: lower case, no punctuation, no articles."""
  text = text.lower().translate(str.maketrans('', '', string.punctuation))
  return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def _f1(target: str, prediction: str) -> float:
  wanted, found = _answer_tokens(target), _answer_tokens(prediction)
  if not wanted or not found:
    return float(wanted == found)
  common = collections.Counter(wanted) & collections.Counter(found)
  return 2.0 * common.total() / (len(wanted) + len(found))


@_mean
def token_f1(references, prediction):
  """Mean F1 of the tokens, as SQuAD scores answers (arXiv 1606.05250)."""
  return max(_f1(reference, prediction) for reference in references)


def rouge(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, by `rouge-score`."""
  check_lengths(targets, predictions)
  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = _library('rouge').RougeScorer(names, use_stemmer=True)
  scores = [
      scorer.score_multi(_references(target), prediction)
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {
      name: 100.0 * float(np.mean([score[name].fmeasure for score in scores]))
      for name in names
  }


def bleu(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU by `sacrebleu`, with its default tokenizer."""
  check_lengths(targets, predictions)
  references = [_references(target) for target in targets]
  # sacrebleu wants one list per reference number; None where there is none.
  columns = [
      [r[i] if i < len(r) else None for r in references]
      for i in range(max(map(len, references)))
  ]
  corpus_bleu = _library('bleu').corpus_bleu
  return {'bleu': corpus_bleu(list(predictions), columns).score}


# Metrics of generated text by their names in gin.
_GENERATION: dict[str, MetricFn] = {
    function.__name__: function
    for function in (
        exact_match, accuracy, numeric_accuracy, option_accuracy, token_f1,
        rouge, bleu,
    )
}
# Metric -> the module of its library.
_LIBRARIES = {'rouge': 'rouge_score.rouge_scorer', 'bleu': 'sacrebleu'}
# Functions, ours and T5's, whose main value is not named like them.
_MAIN_VALUE = {
    'rank_accuracy': 'accuracy',
    'rank_accuracy_per_token': 'accuracy_per_token',
    'rank_classification': 'accuracy',
    'rouge': 'rougeL',
    'squad': 'f1',
    'trivia_qa': 'f1',
}


def by_name(name: str) -> MetricFn:
  """Returns a metric of generated text.

  Raises:
    errors.UserError: The name is unknown, or its library is not installed.
  """
  if name not in _GENERATION:
    near = difflib.get_close_matches(name, _GENERATION, n=3, cutoff=0.0)
    raise errors.UserError(
        f'There is no metric {name!r}; the nearest names are '
        f'{", ".join(near)}.', 'metrics', f'Known: {", ".join(_GENERATION)}.',
    )
  if name in _LIBRARIES:
    _library(name)
  return _GENERATION[name]


def _library(name: str) -> types.ModuleType:
  return packages.import_optional(_LIBRARIES[name], 'metrics')


def main_value(function: MetricFn) -> str:
  """Returns the name of the value of a metric that results tables show."""
  name = seqio.utils.function_name(function)
  return _MAIN_VALUE.get(name, name)


def lower_is_better(function: MetricFn) -> tuple[str, ...]:
  """Returns the names of the values of a metric of which less is better.

  A metric says so itself, where it is defined:

      word_errors.lower_is_better = ('wer',)

  Of all values of the metrics in this file more is better.
  """
  return tuple(getattr(function, 'lower_is_better', ()))
