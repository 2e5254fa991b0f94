# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""P3 and T0 (arXiv 2110.08207) as SeqIO tasks and mixtures.

Importing this registers, with T5's vocabulary,

* a task for each prompt, under the names of the released P3, and by rank
  classification `<task>_score_eval`;
* the training mixtures `t0_train`, `t0_plus_train`, `t0_plus_plus_train`;
* `t0_eval_score`: the original-task prompts of the eight held-out data sets,
  as in arXiv 2309.05444 (T0's without StoryCloze).

Rows are read from a cache only (USE_CACHED_TASKS = True), in SeqIO's TFRecord
layout: the released P3, or what `python -m moe_peft data prepare` writes.
"""

import collections
from collections.abc import Mapping
import statistics

import seqio

from moe_peft import errors
from moe_peft.data import metrics
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data.sets import p3_catalog

T5_VOCABULARY = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
SPLITS = ('train', 'validation')
MIXTURES = {
    't0_train': ('t0',),
    't0_plus_train': ('t0', 't0_plus'),
    't0_plus_plus_train': ('t0', 't0_plus', 't0_plus_plus'),
}
HELD_OUT_MIXTURE = 't0_eval_score'

# promptsource's names of metrics.
_METRICS = {
    'Accuracy': (metrics.accuracy,),
    'Other': (metrics.accuracy,),
    'Spearman Correlation': (metrics.accuracy,),
    'BLEU': (metrics.bleu,),
    'ROUGE': (metrics.rouge,),
    'Squad': (metrics.token_f1, metrics.exact_match),
}


def register(
    mixture: str = 't0_train',
    vocabulary: seqio.Vocabulary | None = None,
    suffix: str = '',
    cache_dir: str | None = None,
) -> str:
  """Registers all tasks and mixtures, once for each suffix.

  In gin, where another vocabulary is wanted than T5's:

      MIXTURE_OR_TASK_NAME = @p3.register()
      p3.register:
        vocabulary = %VOCABULARY
        suffix = '_bytes'

  Args:
    mixture: Name of a mixture or task, without suffix.
    vocabulary: Vocabulary of inputs and targets, by default that of an earlier
      call with this suffix, or else T5's 32,000 pieces.
    suffix: Added to the name of every task and mixture, so that caches of two
      vocabularies do not meet.
    cache_dir: A folder of caches to read from, beside those given elsewhere.

  Returns:
    The name of the mixture or task, suffix included.

  Raises:
    errors.UserError: Another vocabulary without a suffix, or than in an earlier
      call with this one; a suffix that names cannot have.
  """
  if vocabulary is not None and not suffix:
    raise errors.UserError(
        'A vocabulary of your own needs names of its own.',
        'p3.register.suffix', "Set it, for example to '_bytes'.",
    )
  if cache_dir is not None:
    seqio.add_global_cache_dirs([cache_dir])
  names = [f'{name}{suffix}' for name in (HELD_OUT_MIXTURE, *MIXTURES)]
  known = vocabulary is None and names[0] in seqio.MixtureRegistry.names()
  if not known and registration.is_new(names, {'vocabulary': vocabulary}):
    vocabulary = vocabulary or seqio.SentencePieceVocabulary(T5_VOCABULARY)
    for info in p3_catalog.tasks().values():
      metric_fns = dict.fromkeys(f for m in info.metrics for f in _METRICS[m])
      _add_task(info.name + suffix, vocabulary, list(metric_fns))
      if info.has_choices:
        name = info.scored_name + suffix
        _add_task(name, vocabulary, [ranking.rank_accuracy], ranked=True)
    for name, parts in MIXTURES.items():
      seqio.MixtureRegistry.add(
          name + suffix,
          [(i.name + suffix, i.rate) for i in p3_catalog.trained(parts)],
      )
    seqio.MixtureRegistry.add(
        HELD_OUT_MIXTURE + suffix,
        [i.scored_name + suffix for i in p3_catalog.held_out()],
        default_rate=1.0,  # It is evaluated task by task.
    )
  return mixture + suffix


def _add_task(
    name: str, vocabulary: seqio.Vocabulary, metric_fns, ranked: bool = False
) -> None:
  registration.add_task(
      name,
      registration.cached_source(SPLITS, 'p3.register'),
      vocabulary=vocabulary,
      metric_fns=metric_fns,
      ranked=ranked,
      after=[
          seqio.preprocessors.append_eos,
          seqio.CacheDatasetPlaceholder(required=True),
      ],
      inputs_eos=False,  # The released P3 has none there.
  )


def held_out_table(
    accuracies: Mapping[str, float], suffix: str = ''
) -> dict[str, float]:
  """T0's summary: median over the prompts of each held-out data set.

  The rounds of ANLI have a median each, and ANLI is their mean (the papers do
  not say how they pool them).

  Args:
    accuracies: Accuracy in percent by task of `t0_eval_score`.
    suffix: As in `register`.

  Returns:
    Percent by data set, and `mean`, the mean over the data sets.

  Raises:
    errors.UserError: Tasks are missing.
  """
  held_out = p3_catalog.held_out()
  names = [info.scored_name + suffix for info in held_out]
  missing = [name for name in names if name not in accuracies]
  if missing:
    raise errors.UserError(
        f'{len(missing)} tasks have no accuracy, for example {missing[0]}.',
        HELD_OUT_MIXTURE, 'The table needs all of them.',
    )
  groups = collections.defaultdict(lambda: collections.defaultdict(list))
  for info in held_out:
    accuracy = accuracies[info.scored_name + suffix]
    groups[info.dataset_name][info.round].append(accuracy)
  table = {
      dataset: statistics.fmean(map(statistics.median, rounds.values()))
      for dataset, rounds in groups.items()
  }
  return table | {'mean': statistics.fmean(table.values())}


register()
