# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds tasks by name and checks that they fit, before any long work."""

from collections.abc import Mapping, Sequence
import difflib
import logging

import seqio

from moe_peft import errors
from moe_peft.data import lengths as lengths_lib
from moe_peft.data import metrics
from moe_peft.data import registration
from moe_peft.data import vocabularies

_logger = logging.getLogger(__name__)


def get_task_or_mixture(name: str) -> seqio.Task | seqio.Mixture:
  """Returns a registered task or mixture.

  Raises:
    errors.UserError: There is none of that name; the message has the nearest.
  """
  names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if name not in names:
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f'The nearest names are {", ".join(near)}.' if near else (
        f'Mixtures are {", ".join(sorted(seqio.MixtureRegistry.names()))}.'
    )
    raise errors.UserError(
        f'There is no task or mixture {name!r}. {hint}',
        'MIXTURE_OR_TASK_NAME',
        'Import the module that registers it in a gin file, as in '
        '`import moe_peft.data.sets.words`; local.register_task makes a task '
        'of your own files.',
    )
  return seqio.get_mixture_or_task(name)


def task_names(name: str) -> list[str]:
  """Returns the names of the tasks of a mixture, or of the task itself.

  Raises:
    errors.UserError: Unknown name.
  """
  return [t.name for t in seqio.get_subtasks(get_task_or_mixture(name))]


def reads_cache(name: str) -> bool:
  """Whether the tasks are read from SeqIO caches, as those of P3 are.

  Raises:
    errors.UserError: Unknown name, no cache of a task that needs one, or a
      mixture of tasks that need one and tasks that have none.
  """
  tasks = seqio.get_subtasks(get_task_or_mixture(name))
  cached = [task for task in tasks if task.requires_caching]
  for task in cached:
    if task.cache_dir is None:
      folders = sorted(seqio.get_global_cache_dirs()) or 'any folder'
      raise errors.UserError(
          f'The task {task.name} has no cache in {folders}.', task.name,
          'Name the folder of caches with the cache_dir of p3.register or '
          'commonsense.register; `python -m moe_peft data prepare` makes one.',
      )
  if cached and len(cached) < len(tasks):
    other = next(task for task in tasks if not task.requires_caching)
    raise errors.UserError(
        f'{name!r} mixes {cached[0].name}, which is read from a cache, with '
        f'{other.name}, which is not.', 'MIXTURE_OR_TASK_NAME',
        'Train them in two runs.',
    )
  return bool(cached)


def inputs_end(name: str) -> bool:
  """Whether the inputs of a task or mixture end with the end of a sequence.

  Raises:
    errors.UserError: Unknown name.
  """
  features = get_task_or_mixture(name).output_features
  if 'prompt' in features:  # Pairs of answers, see example_rows.py.
    return not isinstance(
        features['prompt'].vocabulary, vocabularies.TokenizerVocabulary
    )
  return 'inputs' in features and features['inputs'].add_eos


def check_features(name: str, wanted: Sequence[str], where: str) -> None:
  """Checks that a task or mixture has the features that something reads.

  Args:
    name: Task or mixture.
    wanted: The features.
    where: The macro that names it.

  Raises:
    errors.UserError: Unknown name, or it lacks one.
  """
  found = get_task_or_mixture(name).output_features
  if missing := [x for x in wanted if x not in found]:
    raise errors.UserError(
        f'{name!r} has no {missing[0]}, but {", ".join(sorted(found))}.', where,
        'gin/runs/dpo.gin trains on pairs (prompt, chosen, rejected) and '
        'evaluates @preferences.ranked() of them; gin/runs/finetune.gin is for '
        'all else (inputs, targets).',
    )


def longest(name: str) -> dict[str, tuple[int, str]]:
  """Returns the most tokens of each feature, EOS included, and their place.

  Tasks whose long examples are left out or cut do not count, nor do those that
  were not registered by this package: SeqIO cannot tell their lengths without
  running their whole pipeline.

  Raises:
    errors.UserError: Unknown name, or the task's data is not installed.
  """
  most = {'inputs': (0, ''), 'targets': (0, '')}
  for task in task_names(name):
    record = registration.RECORDS.get(task)
    if record and record.too_long == lengths_lib.ERROR:
      found = record.longest
      most = {k: max(most[k], found[k]) for k in most}
  return most


def check_feature_lengths(name: str, lengths: Mapping[str, int]) -> None:
  """Checks that no example of a task or mixture has to be cut.

  Args:
    name: Task or mixture.
    lengths: TASK_FEATURE_LENGTHS, tokens of `inputs` and `targets`.

  Raises:
    errors.UserError: Unknown name, missing data package or cache, a feature
      without a length, or a length that is too short; the message has the
      one needed.
  """
  get_task_or_mixture(name)
  if extra := lengths.keys() - {'inputs', 'targets'}:
    raise errors.UserError(
        f'There is no feature {min(extra)!r}.', 'TASK_FEATURE_LENGTHS',
        'Tasks have inputs and targets.',
    )
  for feature in ('inputs', 'targets'):
    length = lengths.get(feature)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
      raise errors.UserError(
          f'The length of {feature!r} must be a positive whole number; the '
          f'lengths are {dict(lengths)}.', 'TASK_FEATURE_LENGTHS',
          "Write for example {'inputs': 32, 'targets': 24}.",
      )
  reads_cache(name)
  for task in task_names(name):
    _check_kept(task, lengths)
  needed = longest(name)
  short = {f: x for f, x in needed.items() if x[0] > lengths[f]}
  if short:
    enough = {f: max(needed[f][0], lengths[f]) for f in needed}
    what = ' and '.join(
        f'{f} of up to {size} tokens (given: {lengths[f]})'
        + (f' in {place}' if place else '')
        for f, (size, place) in short.items()
    )
    raise errors.UserError(
        f'{name!r} has {what}.', 'TASK_FEATURE_LENGTHS',
        f'Set --gin.TASK_FEATURE_LENGTHS="{enough}".',
    )


def _check_kept(task: str, lengths: Mapping[str, int]) -> None:
  """Says how many long examples a task loses; refuses one that loses all."""
  record = registration.RECORDS.get(task)
  if record is None or record.too_long == lengths_lib.ERROR:
    return
  for split, sizes in record.sizes.items():
    cut, dropped = lengths_lib.too_long(sizes, record.too_long, lengths)
    for count, what in ((dropped, 'left out'), (cut, 'cut at the left')):
      if count:
        _logger.info(
            '%s: %s of %s examples of %s are longer than %s and are %s.',
            task, f'{count:,}', f'{len(sizes):,}', split, dict(lengths), what,
        )
    if dropped == len(sizes):
      needed = {
          kind: max(size, lengths[kind])
          for kind, (size, _) in record.longest.items()
      }
      raise errors.UserError(
          f'All examples of {split} of {task!r} are longer than '
          f'{dict(lengths)}.', 'TASK_FEATURE_LENGTHS',
          f'Set --gin.TASK_FEATURE_LENGTHS="{needed}", which fits them all.',
      )


def check_split(name: str, split: str, where: str) -> None:
  """Checks that a task, or at least one of a mixture, has a split.

  Args:
    name: Task or mixture.
    split: The split.
    where: What names it, a macro or a flag.

  Raises:
    errors.UserError: Unknown name, or no task has such a split.
  """
  splits = splits_of(name)
  if split not in splits:
    raise errors.UserError(
        f'{name} has no split {split!r}.', where,
        f'Its splits are {", ".join(sorted(splits)) or "none"}.',
    )


def splits_of(name: str) -> set[str]:
  """The splits of a task, or of any task of a mixture.

  Raises:
    errors.UserError: Unknown name.
  """
  tasks = seqio.get_subtasks(get_task_or_mixture(name))
  return {known for task in tasks for known in task.splits}


def primary_metric(task_name: str) -> str:
  """Returns the name of the metric value that results tables show.

  Raises:
    errors.UserError: Unknown name, or the task has no metric.
  """
  task = get_task_or_mixture(task_name)
  if isinstance(task, seqio.Mixture) or not task.metric_fns:
    raise errors.UserError(
        f'{task_name!r} is not a task with metrics.', task_name,
        'Give it a metric function.',
    )
  return metrics.main_value(task.metric_fns[0])


def lower_is_better(task_name: str) -> list[str]:
  """Returns the metric values of a task of which less is better.

  Raises:
    errors.UserError: Unknown name.
  """
  (task,) = seqio.get_subtasks(get_task_or_mixture(task_name))
  values = map(metrics.lower_is_better, task.metric_fns)
  return sorted({value for of_metric in values for value in of_metric})
