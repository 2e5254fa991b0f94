# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns local rows and promptsource's templates into a cache of P3 tasks."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import json
from pathlib import Path
import re
from typing import Any

import rich.console
import seqio

from moe_peft import atomic
from moe_peft import errors
from moe_peft.data import cache
from moe_peft.data import packages
from moe_peft.data import rows as rows_lib
from moe_peft.data import source_rows
from moe_peft.data import vocabularies
from moe_peft.data.sets import p3
from moe_peft.data.sets import p3_catalog
from moe_peft.data.sets import prompts

_NOTES = """\
# Where these rows come from

The prompts are promptsource's (Apache-2.0). Each data set has a licence of its
own, which its rows do not name: read its card before you pass on this cache or
what you train on it.

"""
# Split -> reason why rows make no example -> number of such rows.
_Skipped = dict[str, collections.Counter]


@dataclasses.dataclass(frozen=True)
class Job:
  """One task to prepare.

  Attributes:
    info: The prompt.
    scored: Whether it is evaluated by rank classification.
    sources: Split -> files.
    prompt: The template.
    max_rows: Rows of a split at most, before the template applies.
  """

  info: p3_catalog.TaskInfo
  scored: bool
  sources: dict[str, source_rows.Source]
  prompt: prompts.Prompt
  max_rows: int | None

  @property
  def name(self) -> str:
    """Name of the task, without suffix."""
    return self.info.scored_name if self.scored else self.info.name

  def recipe(self, task: seqio.Task) -> dict[str, Any]:
    """From what the cache of the task is made."""
    return {
        'prompt': self.prompt.fingerprint,
        'rows': {
            split: {
                'files': [file.name for file in source.files],
                'sha256': source.sha256,
            }
            for split, source in self.sources.items()
        },
        'vocabulary': repr(task.output_features['inputs'].vocabulary),
        'max_rows': self.max_rows,
    }

  def rows(self, split: str, skipped: _Skipped) -> Iterator[rows_lib.Row]:
    """Applies the prompt to the rows of a split; counts what it skips."""
    for number, (place, row) in enumerate(self.sources[split].rows()):
      if self.max_rows is not None and number >= self.max_rows:
        return
      try:
        rendered = self.prompt.render(row, seed=f'{self.info.name}/{number}')
      except errors.UserError as error:
        raise errors.UserError(error.what, f'{place}, {self.name}') from error
      if rendered is None:
        skipped[split]['the template does not apply'] += 1
      elif self.scored and rendered.targets not in rendered.choices:
        skipped[split]['the target is none of the choices'] += 1
      else:
        yield rendered


def prepare(
    promptsource: Path,
    data_dirs: Sequence[Path],
    out: Path,
    tasks: Sequence[str] = ('t0_train', 't0_eval_score'),
    splits: Sequence[str] = (),
    vocabulary: str | None = None,
    suffix: str = '',
    max_rows: int | None = None,
    num_shards: int = 1,
) -> dict[str, dict]:
  """Writes the caches of tasks whose rows are found; skips finished ones.

  Args:
    promptsource: promptsource, its sdist or unpacked.
    data_dirs: Folders with rows, see `source_rows.find`, or wheels that hold
      some.
    out: Folder of the caches, for --seqio_additional_cache_dirs.
    tasks: Mixtures, or regular expressions of whole task names.
    splits: Splits to write; by default train and validation, and validation
      only for tasks by rank classification.
    vocabulary: SentencePiece model, or 'bytes'; by default T5's, in its
      public bucket.
    suffix: As in `p3.register`.
    max_rows: Rows of a split at most, before templates apply.
    num_shards: Files of a split.

  Returns:
    By task what `prepared.json` says.

  Raises:
    errors.UserError: Nothing to do; a template that does not render, with the
      row; an earlier cache that was made from something else.
  """
  p3.register(vocabulary=_vocabulary(vocabulary), suffix=suffix)
  with contextlib.ExitStack() as stack:
    templates = stack.enter_context(packages.unpacked(promptsource))
    folders = [
        stack.enter_context(packages.unpacked(path, '/hf_datasets/'))
        for path in data_dirs
    ]
    jobs, absent = _jobs(templates, folders, tasks, splits, max_rows)
    if not jobs:
      raise errors.UserError(
          f'No rows for any of the {len(absent)} data sets ('
          f'{", ".join(absent[:5])} ...) were found in '
          f'{", ".join(map(str, data_dirs))}.', '--data_dir',
          'They are looked for as NAME/SUBSET/SPLIT.jsonl (.parquet, .arrow), '
          'for example super_glue/cb/validation.jsonl.',
      )
    out.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console(stderr=True, highlight=False)
    records = {}
    for job in cache.track(jobs, console):
      task = seqio.TaskRegistry.get(job.name + suffix)
      records[task.name] = _prepare(job, task, out / task.name, num_shards)
  atomic.write(out / 'LICENCES.md', _NOTES + _cards(jobs))
  console.print(_summary(records, absent), soft_wrap=True)
  return records


def _vocabulary(name: str | None) -> seqio.Vocabulary | None:
  if name is None:
    return None
  if name == 'bytes':
    return vocabularies.byte_vocabulary()
  if not Path(name).is_file():
    raise errors.UserError(
        f'There is no file {name}.', '--vocabulary',
        "Give a SentencePiece model, or 'bytes'.",
    )
  return seqio.SentencePieceVocabulary(name)


def _jobs(
    promptsource: Path,
    data_dirs: Sequence[Path],
    tasks: Sequence[str],
    splits: Sequence[str],
    max_rows: int | None,
) -> tuple[list[Job], list[str]]:
  """Returns what to do, and the names of data sets without rows."""
  templates = prompts.find_templates(promptsource)
  read = functools.cache(functools.partial(prompts.read, templates))
  find = functools.cache(functools.partial(source_rows.find, tuple(data_dirs)))
  jobs, absent = [], {}
  for info, scored in _chosen(tasks):
    wanted = splits or (('validation',) if scored else p3.SPLITS)
    sources = {
        split: source
        for split in wanted
        if (source := find(info.dataset, info.subset, split, info.round))
    }
    if not sources:
      absent[info.dataset_name] = True
      continue
    found = read(info.dataset, info.subset)
    if info.prompt not in found:
      raise errors.UserError(
          f'promptsource has no prompt {info.prompt!r} of {info.dataset_name}; '
          f'{p3_catalog.PATH.name} was made from promptsource 0.2.3.',
          '--promptsource', f'Get it: {packages.PROMPTSOURCE.command}',
      )
    jobs.append(Job(info, scored, sources, found[info.prompt], max_rows))
  return jobs, list(absent)


def _chosen(names: Sequence[str]) -> list[tuple[p3_catalog.TaskInfo, bool]]:
  """Returns (prompt, whether it is scored) of mixtures and expressions."""
  every = {}
  for info in p3_catalog.tasks().values():
    every[info.name] = (info, False)
    if info.has_choices:
      every[info.scored_name] = (info, True)
  chosen = {}
  for name in names:
    if name in p3.MIXTURES:
      found = [i.name for i in p3_catalog.trained(p3.MIXTURES[name])]
    elif name == p3.HELD_OUT_MIXTURE:
      found = [i.scored_name for i in p3_catalog.held_out()]
    else:
      found = _matching(name, every)
    chosen |= {task: every[task] for task in found}
  return list(chosen.values())


def _matching(name: str, every) -> list[str]:
  try:
    found = [task for task in every if re.fullmatch(name, task)]
  except re.error as error:
    raise errors.UserError(
        f'{name!r} is no regular expression: {error}.', '--task'
    ) from error
  if not found:
    raise errors.UserError(
        f'There is no task of P3 and no mixture {name!r}.', '--task',
        f'Mixtures are {", ".join((*p3.MIXTURES, p3.HELD_OUT_MIXTURE))}; tasks '
        f'are named like {next(iter(every))}, and .* is allowed.',
    )
  return found


def _prepare(job: Job, task: seqio.Task, folder: Path, num_shards: int) -> dict:
  """Writes the cache of one task, unless it is there."""
  recipe = job.recipe(task)
  record = cache.reuse(folder, recipe)
  if record is not None:
    return record
  skipped = collections.defaultdict(collections.Counter)
  splits = {
      split: functools.partial(job.rows, split, skipped)
      for split in job.sources
  }
  record = cache.write(task, folder, splits, recipe, num_shards, job.scored)
  for split, count in record['rows'].items():
    if not count:
      why = dict(skipped[split]) or 'the files are empty'
      raise errors.UserError(
          f'No row of {split} makes an example: {why}.', task.name
      )
  return record | {'skipped': skipped}


def _cards(jobs: Sequence[Job]) -> str:
  names = sorted({job.info.dataset for job in jobs})
  return ''.join(
      f'- {name}: https://huggingface.co/datasets/{name}\n' for name in names
  )


def _summary(records: dict[str, dict], absent: Sequence[str]) -> str:
  rows = sum(sum(record['rows'].values()) for record in records.values())
  lines = [f'{len(records)} tasks, {rows:,} examples.']
  for name, record in records.items():
    if record.get('skipped'):
      lines.append(f'{name}: rows left out: {json.dumps(record["skipped"])}')
  if absent:
    lines.append(f'No rows found for: {", ".join(absent)}.')
  lines.append('Licences of the data sets: see LICENCES.md in the folder.')
  return '\n'.join(lines)
