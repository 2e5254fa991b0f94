# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks in 24 languages, and in 12 that nothing trains on.

Registered when this is imported: `lemma_de`, `date_pl`, `plural_ru` and so on;
the mixtures `languages_seen` to train on, `languages_unseen` to evaluate, and
`languages_all` with both. Feature lengths that fit: `{'inputs': 48, 'targets':
40}`. The small base has read English alone.

What can cross over to an unseen language is what needs none of its words:
`lemma` and `plural`. Its dates have names of months that nobody can know, so
they are no task there.
"""

import functools

import seqio

from moe_peft.data import metrics
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data import rows
from moe_peft.data import vocabularies
from moe_peft.data.sets import language_rows

# English lemmas are a task of the quickstart.
SEEN = (
    'en', 'de', 'nl', 'sv', 'da', 'nb', 'fr', 'es', 'it', 'pt', 'ro', 'ca',
    'ru', 'uk', 'pl', 'cs', 'bg', 'fi', 'et', 'hu', 'tr', 'sw', 'id', 'cy',
)  # fmt: skip
# Near relatives of a seen language, then languages without one.
UNSEEN = (
    'sk', 'is', 'hbs', 'gl', 'be', 'hr', 'el', 'lt', 'sq', 'ga', 'ka', 'hy',
)
_LEMMAS = tuple(code for code in SEEN if code != 'en')
# Those with two or more common classes of whole numbers.
_PLURALS = ('ro', 'ru', 'uk', 'pl')
TASKS = {
    'seen': {'lemma': _LEMMAS, 'date': SEEN, 'plural': _PLURALS},
    'unseen': {
        # simplemma has one table for Bosnian, Croatian and Serbian, `hbs`, and
        # none for Belarusian; CLDR has them apart.
        'lemma': tuple(c for c in UNSEEN if c not in ('be', 'hr')),
        'plural': ('be', 'hr', 'lt', 'is'),
    },
}


def _register() -> None:
  names = {'seen': [], 'unseen': []}
  for kind, tasks in TASKS.items():
    for task, languages in tasks.items():
      for language in languages:
        name = f'{task}_{language}'
        names[kind].append(name)
        rows_fn = functools.partial(language_rows.split_rows, task, language)
        if kind == 'unseen':
          rows_fn = functools.partial(
              language_rows.unseen_rows, task, language,
              TASKS['seen'][task],
          )
        ranked = task == 'plural'
        registration.add_rows(
            registration.TaskRecord(
                name=name, rows_fn=rows_fn,
                vocabulary=vocabularies.byte_vocabulary(),
            ),
            rows.SPLITS if kind == 'seen' else rows.SPLITS[1:],
            metric_fns=[
                ranking.rank_accuracy if ranked else metrics.exact_match
            ],
            ranked=ranked,
        )
  for mixture, tasks in (
      ('languages_seen', names['seen']),
      ('languages_unseen', names['unseen']),
      ('languages_all', names['seen'] + names['unseen']),
  ):
    seqio.MixtureRegistry.add(mixture, tasks, default_rate=1.0)


_register()
