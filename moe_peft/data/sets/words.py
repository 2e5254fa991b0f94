# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The word tasks and their mixtures, registered when this is imported.

`tiny_pretrain` is what the small base is trained on, `quickstart` what
adapters learn afterwards; no task is in both, and no word is in two splits
(see `lexicon`). `word_adaptation` holds every adaptation task, and
`quickstart_nameless` those of `quickstart` with inputs that do not say which
task they are of. `morphology` holds four that write another form of a word, all
scored alike. Feature lengths that fit all of them: `{'inputs': 32, 'targets':
24}`; the adaptation tasks need only 16 for the targets.
"""

from collections.abc import Callable
import functools

import seqio
import tensorflow as tf

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
_MORPHOLOGY = ('adverb', 'comparative', 'lemma', 'past_tense')


def _nameless(task: seqio.Task) -> seqio.Task:
  """The task without its name in front of the inputs, as in `lemma: `."""

  def without(example):
    inputs = tf.strings.regex_replace(example['inputs'], '^[^:]*: ', '')
    return {**example, 'inputs': inputs}

  first = lambda dataset: dataset.map(without)
  return task.replace(preprocessors=[first, *task.preprocessors])


def _register() -> None:
  for name, builder in (PRETRAINING | ADAPTATION | RANKED).items():
    ranked = name in RANKED
    registration.add_rows(
        registration.TaskRecord(
            name=name,
            rows_fn=functools.partial(word_rows.split_rows, builder),
            vocabulary=vocabularies.byte_vocabulary(),
            span_corruption=_SPANS.get(name),
        ),
        rows.SPLITS,
        metric_fns=[ranking.rank_accuracy if ranked else metrics.exact_match],
        ranked=ranked,
    )
  seqio.MixtureRegistry.add('tiny_pretrain', list(_PRETRAIN_RATES.items()))
  for name, tasks in (
      ('quickstart', _QUICKSTART),
      ('morphology', _MORPHOLOGY),
      ('word_adaptation', (*ADAPTATION, *RANKED)),
  ):
    seqio.MixtureRegistry.add(name, list(tasks), default_rate=1.0)
  seqio.MixtureRegistry.add(
      'quickstart_nameless',
      [_nameless(seqio.TaskRegistry.get(name)) for name in _QUICKSTART],
      default_rate=1.0,
  )


_register()
