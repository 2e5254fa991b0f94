# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics with SeqIO's signatures; all values are percentages, 0 to 100.

Metrics of generated text take `(targets, predictions)`, lists of strings; a
target may also be a list of accepted answers. Metrics of scored text take
`(targets, scores)`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import difflib
import importlib.util
import re
import string
from typing import Any, NamedTuple

import numpy as np

from moe_peft import errors

Target = str | Sequence[str]


class RankTarget(NamedTuple):
  """What `rank_accuracy` knows about one scored answer choice.

  Attributes:
    question: number of the question.
    choice: number of the choice.
    is_correct: whether this choice is the answer.
    num_choices: how many choices the question has; 0 if the data do not say
      (the released P3).
    num_tokens: length of the choice in tokens, EOS included.
  """

  question: int
  choice: int
  is_correct: bool
  num_choices: int
  num_tokens: int


def _references(target: Target) -> Sequence[str]:
  return (target,) if isinstance(target, str) else target


def _check_lengths(targets: Sequence[Any], outputs: Sequence[Any]) -> None:
  if not len(targets) or len(targets) != len(outputs):
    raise ValueError(
        f'{len(targets)} targets and {len(outputs)} outputs of the model; '
        'a metric needs at least one, and equally many.'
    )


def exact_match(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of predictions that equal a target, outer spaces aside."""
  _check_lengths(targets, predictions)
  hits = [
      prediction.strip() in [t.strip() for t in _references(target)]
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {'exact_match': 100.0 * float(np.mean(hits))}


def accuracy(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of generated labels that are right, case and spaces aside."""
  _check_lengths(targets, predictions)
  hits = [
      prediction.strip().lower()
      in [t.strip().lower() for t in _references(target)]
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {'accuracy': 100.0 * float(np.mean(hits))}


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
    errors.UserError: none says anything, so that no prediction is right.
  """
  what, read = _READERS[metric]
  answers = [read(reference) for reference in _references(target)]
  answers = [answer for answer in answers if answer is not None]
  if not answers:
    raise errors.UserError(
        f'{metric}: the target {target!r:.80} has no {what}. Give it one, or '
        'choose another metric, such as exact_match.'
    )
  return answers


def check_target(
    functions: Sequence[Callable[..., Any]], target: Target
) -> None:
  """Checks that metrics can judge predictions of a target.

  Args:
    functions: the metrics.
    target: the target.

  Raises:
    errors.UserError: they cannot.
  """
  for function in functions:
    if function.__name__ in _READERS:
      _answers(function.__name__, target)


def numeric_accuracy(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of predictions whose last number is that of a target.

  Numbers are equal within 0.001, as in arXiv 2304.01933. A prediction without
  a number is wrong.

  Raises:
    errors.UserError: a target has no number.
  """
  _check_lengths(targets, predictions)

  name = 'numeric_accuracy'

  def is_right(target, prediction):
    number, wanted = last_number(prediction), _answers(name, target)
    return number is not None and any(abs(number - w) <= 1e-3 for w in wanted)

  hits = list(map(is_right, targets, predictions))
  return {name: 100.0 * float(np.mean(hits))}


def option_accuracy(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Percentage of predictions whose last option, A to E, is that of a target.

  Raises:
    errors.UserError: a target has no option.
  """
  _check_lengths(targets, predictions)
  hits = [
      last_option(prediction) in _answers('option_accuracy', target)
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {'option_accuracy': 100.0 * float(np.mean(hits))}


def token_f1(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean F1 of the tokens, as SQuAD scores answers (arXiv 1606.05250)."""
  _check_lengths(targets, predictions)
  best = [
      max(_f1(reference, prediction) for reference in _references(target))
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {'token_f1': 100.0 * float(np.mean(best))}


def rouge(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, by `rouge-score`."""
  _check_lengths(targets, predictions)
  require('rouge')
  from rouge_score import rouge_scorer  # noqa: PLC0415

  scorer = rouge_scorer.RougeScorer(
      ['rouge1', 'rouge2', 'rougeL'], use_stemmer=True
  )
  scores = [
      scorer.score_multi(_references(target), prediction)
      for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {
      name: 100.0 * float(np.mean([score[name].fmeasure for score in scores]))
      for name in ('rouge1', 'rouge2', 'rougeL')
  }


def bleu(
    targets: Sequence[Target], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU by `sacrebleu`, its default tokeniser."""
  _check_lengths(targets, predictions)
  require('bleu')
  import sacrebleu  # noqa: PLC0415

  references = [_references(target) for target in targets]
  # sacrebleu wants one list per reference number; None where there is none.
  columns = [
      [r[i] if i < len(r) else None for r in references]
      for i in range(max(map(len, references)))
  ]
  return {'bleu': sacrebleu.corpus_bleu(list(predictions), columns).score}


def rank_target(
    text: str, example: Mapping[str, Any], is_target: bool = False
) -> str | RankTarget:
  """SeqIO postprocessor of tasks with answer choices.

  Args:
    text: the decoded text.
    example: the example, with the features that
      `preprocessors.rank_classification` adds.
    is_target: whether `text` is the target, not a prediction.

  Returns:
    A `RankTarget` for a target; a prediction is returned as it is.
  """
  if not is_target:
    return text
  question, choice = example['idx']
  return RankTarget(
      question=int(question),
      choice=int(choice),
      is_correct=bool(example['is_correct']),
      num_choices=int(example.get('num_choices', 0)),
      num_tokens=len(example['targets']),
  )


def rank_accuracy(
    targets: Sequence[RankTarget],
    scores: Sequence[float] | tuple[Sequence[float], Any],
    length_normalized: bool = False,
) -> dict[str, float]:
  """Percentage of questions whose right choice has the highest score.

  Choices are put together by their question number, wherever in `targets`
  they are. A question of which choices are missing (an evaluation cut after
  `num_examples`) does not count. Of equal scores the first choice wins.

  Args:
    targets: one entry per choice.
    scores: <float>[len(targets)], the summed log-likelihood of each choice;
      also a tuple of which this is the first element (T5X's intermediates).
    length_normalized: divide the scores by the number of tokens.

  Raises:
    ValueError: the lengths differ, a score is not a number, or no question is
      complete.
  """
  if isinstance(scores, tuple):
    scores = scores[0]
  scores = np.asarray(scores, dtype=np.float64)
  _check_lengths(targets, scores)
  if np.isnan(scores).any():
    raise ValueError('The scores hold NaN: the model has diverged.')
  questions = collections.defaultdict(dict)
  for target, score in zip(targets, scores, strict=True):
    if length_normalized:
      score = score / target.num_tokens
    questions[target.question][target.choice] = (score, target)
  hits = []
  for choices in questions.values():
    ordered = [choices[choice] for choice in sorted(choices)]
    if ordered[0][1].num_choices in (0, len(ordered)):
      _, best = max(ordered, key=lambda scored: scored[0])
      hits.append(best.is_correct)
  if not hits:
    raise ValueError('No question has all of its choices scored.')
  return {'accuracy': 100.0 * float(np.mean(hits))}


def rank_accuracy_per_token(
    targets: Sequence[RankTarget],
    scores: Sequence[float] | tuple[Sequence[float], Any],
) -> dict[str, float]:
  """`rank_accuracy` of the mean log-likelihood of a token."""
  value = rank_accuracy(targets, scores, length_normalized=True)['accuracy']
  return {'accuracy_per_token': value}


# Name in gin -> function, the value that a results table shows.
_GENERATION: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    'exact_match': (exact_match, 'exact_match'),
    'accuracy': (accuracy, 'accuracy'),
    'numeric_accuracy': (numeric_accuracy, 'numeric_accuracy'),
    'option_accuracy': (option_accuracy, 'option_accuracy'),
    'token_f1': (token_f1, 'token_f1'),
    'rouge': (rouge, 'rougeL'),
    'bleu': (bleu, 'bleu'),
}
_LIBRARIES = {
    'rouge': ('rouge_score', 'rouge-score'),
    'bleu': ('sacrebleu', 'sacrebleu'),
}


def require(name: str) -> None:
  """Raises UserError where the library behind a metric is not installed."""
  module, distribution = _LIBRARIES.get(name, (None, None))
  if module and importlib.util.find_spec(module) is None:
    raise errors.UserError(
        f'The metric {name!r} needs the package {distribution}: '
        f'pip install {distribution}'
    )


def by_name(name: str) -> tuple[Callable[..., dict[str, float]], str]:
  """Returns a generation metric and the name of its main value.

  Raises:
    errors.UserError: the name is unknown, or its library is not installed.
  """
  if name not in _GENERATION:
    near = difflib.get_close_matches(name, _GENERATION, n=3, cutoff=0.0)
    raise errors.UserError(
        f'Unknown metric {name!r}; nearest names: {", ".join(near)}. '
        f'Known: {", ".join(_GENERATION)}.'
    )
  require(name)
  return _GENERATION[name]
