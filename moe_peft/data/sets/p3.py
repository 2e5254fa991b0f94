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

from collections.abc import Mapping
import statistics

import seqio

from moe_peft import errors
from moe_peft.data import metrics
from moe_peft.data import preprocessors
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


def _no_rows(split: str, shuffle_files: bool, seed: int | None = None):
  del split, shuffle_files, seed
  raise errors.UserError(
      'Tasks of P3 are read from a cache: set USE_CACHED_TASKS = True and '
      'name the cache, with --seqio_additional_cache_dirs (T5X) or '
      'p3.register.cache_dir (gin). `python -m moe_peft data prepare` makes '
      'one from local data.'
  )


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
    mixture: name of a mixture or task, without suffix.
    vocabulary: of inputs and targets, by default T5's 32,000 pieces.
    suffix: added to the name of every task and mixture, so that caches of two
      vocabularies do not meet.
    cache_dir: a folder of caches to read from, beside those given elsewhere.

  Returns:
    The name of the mixture or task, suffix included.

  Raises:
    errors.UserError: another vocabulary without a suffix.
  """
  if vocabulary is not None and not suffix:
    raise errors.UserError(
        'p3.register: a vocabulary of your own needs a suffix of its own, for '
        "example p3.register.suffix = '_bytes'."
    )
  if cache_dir is not None:
    seqio.add_global_cache_dirs([cache_dir])
  if f'{HELD_OUT_MIXTURE}{suffix}' not in seqio.MixtureRegistry.names():
    vocabulary = vocabulary or seqio.SentencePieceVocabulary(T5_VOCABULARY)
    for info in p3_catalog.tasks().values():
      _add_tasks(info, vocabulary, suffix)
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


def _add_tasks(
    info: p3_catalog.TaskInfo, vocabulary: seqio.Vocabulary, suffix: str
) -> None:
  """Registers one prompt, as text and, if it has choices, to be scored."""
  # As in the released P3: inputs have no end of sequence, targets have one.
  features = {
      'inputs': seqio.Feature(vocabulary, add_eos=False),
      'targets': seqio.Feature(vocabulary, add_eos=True),
  }
  steps = [
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
      seqio.CacheDatasetPlaceholder(required=True),
  ]
  source = seqio.FunctionDataSource(_no_rows, splits=SPLITS)
  seqio.TaskRegistry.add(
      info.name + suffix,
      source=source,
      preprocessors=steps,
      output_features=features,
      metric_fns=_metric_fns(info),
  )
  if info.has_choices:
    seqio.TaskRegistry.add(
        info.scored_name + suffix,
        source=source,
        preprocessors=[preprocessors.rank_classification, *steps],
        output_features=features,
        postprocess_fn=metrics.rank_target,
        metric_fns=[metrics.rank_accuracy],
    )


def _metric_fns(info: p3_catalog.TaskInfo):
  functions = [f for name in info.metrics for f in _METRICS[name]]
  return list(dict.fromkeys(functions))


def held_out_table(
    accuracies: Mapping[str, float], suffix: str = ''
) -> dict[str, float]:
  """T0's summary: median over the prompts of each held-out data set.

  The rounds of ANLI have a median each, and ANLI is their mean (the papers do
  not say how they pool them).

  Args:
    accuracies: accuracy in percent by task of `t0_eval_score`.
    suffix: as in `register`.

  Returns:
    Percent by data set, and `mean`, the mean over the data sets.

  Raises:
    errors.UserError: tasks are missing.
  """
  groups: dict[str, dict[str | None, list[float]]] = {}
  missing = []
  for info in p3_catalog.held_out():
    name = info.scored_name + suffix
    if name not in accuracies:
      missing.append(name)
      continue
    rounds = groups.setdefault(info.dataset_name, {})
    rounds.setdefault(info.round, []).append(accuracies[name])
  if missing:
    raise errors.UserError(
        f'{len(missing)} tasks of {HELD_OUT_MIXTURE} have no accuracy, for '
        f'example {missing[0]}. The table needs all of them.'
    )
  table = {
      dataset: statistics.fmean(map(statistics.median, rounds.values()))
      for dataset, rounds in groups.items()
  }
  return table | {'mean': statistics.fmean(table.values())}


register()
