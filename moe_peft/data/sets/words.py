# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The word tasks and their mixtures, registered when this is imported.

`tiny_pretrain` is what the small base is trained on, `quickstart` what
adapters learn afterwards; no task is in both, and no word is in two splits
(see `lexicon`). `word_adaptation` holds every adaptation task, and
`quickstart_nameless` those of `quickstart` with inputs that do not say which
task they are of. `morphology` holds four that write another form of a word, all
scored alike. Feature lengths that fit all of them: `{'inputs': 32, 'targets':
24}`; the adaptation tasks need only 16 for the targets. `register` makes the
adaptation tasks again for a base with a vocabulary of its own.
"""

from collections.abc import Callable
import dataclasses
import functools

import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import metrics
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data import rows
from moe_peft.data import span_corruption
from moe_peft.data import vocabularies
from moe_peft.data.sets import lexicon
from moe_peft.data.sets import word_rows


def _inflection(pos: str, tag: str, prefix: str) -> word_rows.Builder:
  return functools.partial(
      word_rows.inflection, pos=pos, tag=tag, prefix=prefix
  )


def _derivation(
    pos: str, spell: Callable[[str], str], prefix: str
) -> word_rows.Builder:
  return functools.partial(
      word_rows.derivation, pos=pos, spell=spell, prefix=prefix
  )


PRETRAINING = {
    'span_words': word_rows.single_words,
    'span_strings': word_rows.word_strings,
    'spelling': word_rows.spelling,
    'joining': word_rows.joining,
    'third_person': _inflection('verb', 'VBZ', 'third person'),
    'gerund': _inflection('verb', 'VBG', 'gerund'),
    'plural': _inflection('noun', 'NNS', 'plural'),
    'superlative': _inflection('adj', 'JJS', 'superlative'),
    'quality_noun': _derivation('noun', lexicon.quality_spelling, 'quality'),
    'pronunciation': word_rows.pronunciation,
}
_SPANS = {
    'span_words': span_corruption.SpanCorruption(0.3, 2.5),
    'span_strings': span_corruption.SpanCorruption(0.2, 3.0),
}
ADAPTATION = {
    'past_tense': _inflection('verb', 'VBD', 'past tense'),
    'comparative': _inflection('adj', 'JJR', 'comparative'),
    'lemma': word_rows.lemma,
    'adverb': _derivation('adv', lexicon.adverb_spelling, 'adverb'),
    'stress': word_rows.stress,
}
RANKED = {
    'syllables': word_rows.syllables,
    'article': word_rows.article,
    'rhyme': word_rows.rhyme,
    'part_of_speech': word_rows.part_of_speech,
    'word_form': word_rows.word_form,
}
_TASKS = PRETRAINING | ADAPTATION | RANKED

# The small tables would be memorized at the common rate.
_PRETRAIN_RATES = dict.fromkeys(PRETRAINING, 1.0) | {
    'span_words': 2.0,
    'span_strings': 2.0,
    'superlative': 0.5,
    'quality_noun': 0.5,
    'pronunciation': 2.0,
}
_QUICKSTART = (
    'past_tense', 'comparative', 'lemma', 'stress', 'syllables', 'article',
    'part_of_speech',
)  # fmt: skip
_MIXTURES = {
    'quickstart': _QUICKSTART,
    'morphology': ('adverb', 'comparative', 'lemma', 'past_tense'),
    'word_adaptation': (*ADAPTATION, *RANKED),
}


def _nameless(task: seqio.Task) -> seqio.Task:
  """The task without its name in front of the inputs, as in `lemma: `."""

  def without(example):
    inputs = tf.strings.regex_replace(example['inputs'], '^[^:]*: ', '')
    return {**example, 'inputs': inputs}

  first = lambda dataset: dataset.map(without)
  return task.replace(preprocessors=[first, *task.preprocessors])


def register(mixture: str, vocabulary: seqio.Vocabulary) -> str:
  """Registers the adaptation tasks for a base with another vocabulary.

  All names begin with `tokens_` there: `tokens_lemma`, `tokens_morphology`. An
  answer begins with a space, as words do in the text of a decoder-only base.
  Calling it again with the same vocabulary changes nothing.

  Args:
    mixture: The mixture or task to return, by its name without `tokens_`:
      'quickstart', 'morphology', 'word_adaptation' or a task of theirs.
    vocabulary: Vocabulary of inputs and targets.

  Raises:
    errors.UserError: Unknown name, or another vocabulary than in an earlier
      call.
  """
  tasks = ADAPTATION | RANKED
  names = [*tasks, *_MIXTURES]
  if mixture not in names:
    raise errors.UserError(
        f'There is no adaptation task or mixture {mixture!r}.',
        'words.register.mixture',
        f'They are {", ".join(names)}.',
    )
  tokens = 'tokens_{}'.format
  if registration.is_new(
      [tokens(name) for name in names], {'vocabulary': vocabulary}
  ):
    for name in tasks:
      _add_task(tokens(name), name, vocabulary, _spaced_rows)
    for name, parts in _MIXTURES.items():
      seqio.MixtureRegistry.add(
          tokens(name), [tokens(part) for part in parts], default_rate=1.0
      )
  return tokens(mixture)


def _spaced_rows(builder: word_rows.Builder) -> word_rows.Splits:
  """The rows of a builder, with a space before each answer."""
  return {
      split: tuple(
          dataclasses.replace(
              row,
              targets=f' {row.targets}',
              choices=tuple(f' {choice}' for choice in row.choices),
          )
          for row in found
      )
      for split, found in word_rows.split_rows(builder).items()
  }


def _add_task(
    registered: str,
    name: str,
    vocabulary: seqio.Vocabulary,
    splits_of: Callable[[word_rows.Builder], word_rows.Splits],
) -> None:
  """Registers the task `name` as `registered`."""
  ranked = name in RANKED
  registration.add_rows(
      registration.TaskRecord(
          name=registered,
          rows_fn=functools.partial(splits_of, _TASKS[name]),
          vocabulary=vocabulary,
          span_corruption=_SPANS.get(name),
      ),
      rows.SPLITS,
      metric_fns=[ranking.rank_accuracy if ranked else metrics.exact_match],
      ranked=ranked,
  )


def _register_bytes() -> None:
  for name in _TASKS:
    _add_task(name, name, vocabularies.byte_vocabulary(), word_rows.split_rows)
  seqio.MixtureRegistry.add('tiny_pretrain', list(_PRETRAIN_RATES.items()))
  for name, tasks in _MIXTURES.items():
    seqio.MixtureRegistry.add(name, list(tasks), default_rate=1.0)
  seqio.MixtureRegistry.add(
      'quickstart_nameless',
      [_nameless(seqio.TaskRegistry.get(name)) for name in _QUICKSTART],
      default_rate=1.0,
  )


_register_bytes()
