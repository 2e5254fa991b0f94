# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The word tasks and their mixtures, registered when this is imported.

`tiny_pretrain` is what the small base is trained on, `quickstart` what
adapters learn afterwards; no task is in both, and no word is in two splits
(see `lexicon`). `word_adaptation` holds every adaptation task. Feature lengths
that fit all of them: `{'inputs': 32, 'targets': 24}`; the adaptation tasks
need only 16 for the targets.
"""

import functools

import seqio

from moe_peft.data import lexicon
from moe_peft.data import metrics
from moe_peft.data import registration
from moe_peft.data import vocabularies
from moe_peft.data.sets import word_rows


def _inflection(pos: str, tag: str, prefix: str) -> word_rows.Builder:
  return functools.partial(
      word_rows.inflection, pos=pos, tag=tag, prefix=prefix
  )


# Name -> (kind, builder).
PRETRAINING = {
    'span_words': ('span corruption', word_rows.single_words),
    'span_strings': ('span corruption', word_rows.word_strings),
    'spelling': ('spelling', word_rows.spelling),
    'joining': ('spelling', word_rows.joining),
    'third_person': ('inflection', _inflection('verb', 'VBZ', 'third person')),
    'gerund': ('inflection', _inflection('verb', 'VBG', 'gerund')),
    'plural': ('inflection', _inflection('noun', 'NNS', 'plural')),
    'superlative': ('inflection', _inflection('adj', 'JJS', 'superlative')),
    'quality_noun': (
        'derivation',
        functools.partial(
            word_rows.derivation,
            pos='noun',
            spell=lexicon.quality_spelling,
            prefix='quality',
        ),
    ),
    'pronunciation': ('phonology', word_rows.pronunciation),
}
_SPANS = {
    'span_words': registration.SpanCorruption(0.3, 2.5),
    'span_strings': registration.SpanCorruption(0.2, 3.0),
}
ADAPTATION = {
    'past_tense': ('inflection', _inflection('verb', 'VBD', 'past tense')),
    'comparative': ('inflection', _inflection('adj', 'JJR', 'comparative')),
    'lemma': ('lemmatisation', word_rows.lemma),
    'adverb': (
        'derivation',
        functools.partial(
            word_rows.derivation,
            pos='adv',
            spell=lexicon.adverb_spelling,
            prefix='adverb',
        ),
    ),
    'stress': ('phonology', word_rows.stress),
}
RANKED = {
    'syllables': ('phonology', word_rows.syllables),
    'article': ('phonology', word_rows.article),
    'rhyme': ('phonology', word_rows.rhyme),
    'part_of_speech': ('grammar', word_rows.part_of_speech),
    'word_form': ('grammar', word_rows.word_form),
}

# Mixing rates. The small tables would be memorised at the common rate.
_PRETRAIN_RATES = {
    'span_words': 2.0,
    'span_strings': 2.0,
    'spelling': 1.0,
    'joining': 1.0,
    'third_person': 1.0,
    'gerund': 1.0,
    'plural': 1.0,
    'superlative': 0.5,
    'quality_noun': 0.5,
    'pronunciation': 2.0,
}
_QUICKSTART_RATES = {
    'past_tense': 1.0,
    'comparative': 1.0,
    'lemma': 1.0,
    'stress': 1.0,
    'syllables': 1.0,
    'article': 1.0,
    'part_of_speech': 1.0,
}


def _register() -> None:
  for name, (kind, builder) in {
      **PRETRAINING, **ADAPTATION, **RANKED
  }.items():
    ranked = name in RANKED
    registration.add_task(
        registration.TaskRecord(
            name=name,
            kind=kind,
            primary_metric='accuracy' if ranked else 'exact_match',
            rows_fn=functools.partial(word_rows.split_rows, builder),
            vocabulary=vocabularies.byte_vocabulary(),
            span_corruption=_SPANS.get(name),
        ),
        splits=lexicon.SPLITS,
        metric_fns=[metrics.rank_accuracy if ranked else metrics.exact_match],
        has_choices=ranked,
    )
  seqio.MixtureRegistry.add('tiny_pretrain', list(_PRETRAIN_RATES.items()))
  seqio.MixtureRegistry.add('quickstart', list(_QUICKSTART_RATES.items()))
  seqio.MixtureRegistry.add(
      'word_adaptation', [*ADAPTATION, *RANKED], default_rate=1.0
  )


_register()
