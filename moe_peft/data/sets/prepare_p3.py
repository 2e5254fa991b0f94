# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns local rows and promptsource's templates into a cache of P3 tasks."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import json
from pathlib import Path
import re
import sys

import rich.console
import rich.progress
import seqio

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


@dataclasses.dataclass(frozen=True)
class Job:
  """One task to prepare.

  Attributes:
    info: the prompt.
    scored: by rank classification.
    sources: split -> files.
    prompt: the template.
  """

  info: p3_catalog.TaskInfo
  scored: bool
  sources: dict[str, source_rows.Source]
  prompt: prompts.Prompt

  @property
  def name(self) -> str:
    return self.info.scored_name if self.scored else self.info.name


class _Skipped:
  """Counts rows of a task that make no example, by reason."""

  def __init__(self):
    self.counts: dict[str, dict[str, int]] = {}

  def add(self, split: str, reason: str) -> None:
    reasons = self.counts.setdefault(split, {})
    reasons[reason] = reasons.get(reason, 0) + 1


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
    data_dirs: folders with rows, see `source_rows.find`, or wheels that hold
      some.
    out: folder of the caches, for --seqio_additional_cache_dirs.
    tasks: mixtures, or regular expressions of whole task names.
    splits: splits to write; by default train and validation, and validation
      only for tasks by rank classification.
    vocabulary: SentencePiece model, or 'bytes'; by default T5's, in its
      public bucket.
    suffix: as in `p3.register`.
    max_rows: rows of a split at most, before templates apply.
    num_shards: files of a split.

  Returns:
    By task what `prepared.json` says.

  Raises:
    errors.UserError: nothing to do; a template that does not render, with the
      row; an earlier cache that was made from something else.
  """
  p3.register(vocabulary=_vocabulary(vocabulary), suffix=suffix)
  with contextlib.ExitStack() as stack:
    templates = stack.enter_context(packages.unpacked(promptsource))
    folders = [
        stack.enter_context(packages.unpacked(path, '/hf_datasets/'))
        for path in data_dirs
    ]
    jobs, absent = _jobs(templates, folders, tasks, splits)
    return _run(jobs, absent, data_dirs, out, suffix, max_rows, num_shards)


def _run(
    jobs: Sequence[Job],
    absent: Sequence[str],
    data_dirs: Sequence[Path],
    out: Path,
    suffix: str,
    max_rows: int | None,
    num_shards: int,
) -> dict[str, dict]:
  """Writes the caches and the notes, and prints a summary."""
  if not jobs:
    raise errors.UserError(
        f'No rows for any of the {len(absent)} data sets were found in '
        f'{", ".join(map(str, data_dirs))}. They are looked for as '
        'NAME/SUBSET/SPLIT.jsonl (.parquet, .arrow), for example '
        'super_glue/cb/validation.jsonl; data sets: '
        f'{", ".join(absent[:5])} ...'
    )
  out.mkdir(parents=True, exist_ok=True)
  console = rich.console.Console(stderr=True, highlight=False)
  records = {}
  for job in rich.progress.track(
      jobs, 'tasks', console=console, disable=not sys.stderr.isatty()
  ):
    task = seqio.TaskRegistry.get(job.name + suffix)
    records[task.name] = _prepare(job, task, out, max_rows, num_shards)
  _write_notes(jobs, out)
  console.print(_summary(records, absent), soft_wrap=True)
  return records


def _vocabulary(name: str | None) -> seqio.Vocabulary | None:
  if name is None:
    return None
  if name == 'bytes':
    return vocabularies.byte_vocabulary()
  if not Path(name).is_file():
    raise errors.UserError(
        f"--vocabulary {name}: no such file. Give a SentencePiece model, or "
        "'bytes'."
    )
  return seqio.SentencePieceVocabulary(name)


def _jobs(
    promptsource: Path,
    data_dirs: Sequence[Path],
    tasks: Sequence[str],
    splits: Sequence[str],
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
          f'{p3_catalog.PATH.name} was made from promptsource 0.2.3.'
      )
    jobs.append(Job(info, scored, sources, found[info.prompt]))
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
        f'--task {name}: no regular expression ({error}).'
    ) from error
  if not found:
    raise errors.UserError(
        f'--task {name}: no task of P3 and no mixture. Mixtures: '
        f'{", ".join((*p3.MIXTURES, p3.HELD_OUT_MIXTURE))}; tasks are named '
        f'like {next(iter(every))}, and .* is allowed.'
    )
  return found


def _prepare(
    job: Job,
    task: seqio.Task,
    out: Path,
    max_rows: int | None,
    num_shards: int,
) -> dict:
  """Writes the cache of one task, unless it is there."""
  folder = out / task.name
  recipe = {
      'prompt': job.prompt.fingerprint,
      'rows': {
          split: {
              'files': [file.name for file in source.files],
              'sha256': source.sha256,
          }
          for split, source in job.sources.items()
      },
      'vocabulary': repr(task.output_features['inputs'].vocabulary),
      'max_rows': max_rows,
  }
  record = cache.read_record(folder)
  if record is not None:
    if record['recipe'] == recipe:
      return record
    raise errors.UserError(
        f'{folder} was made from other rows, another template or another '
        'vocabulary. Give another --out, or remove that folder.'
    )
  skipped = _Skipped()
  record = cache.write(
      task,
      folder,
      {
          split: functools.partial(
              _render, job, split, source, max_rows, skipped
          )
          for split, source in job.sources.items()
      },
      recipe,
      num_shards,
      job.scored,
  )
  for split, count in record['rows'].items():
    if not count:
      raise errors.UserError(
          f'{task.name}: no row of {split} makes an example: '
          f'{skipped.counts.get(split, "the files are empty")}.'
      )
  return record | {'skipped': skipped.counts}


def _render(
    job: Job,
    split: str,
    source: source_rows.Source,
    max_rows: int | None,
    skipped: _Skipped,
) -> Iterator[rows_lib.Row]:
  """Applies the prompt to the rows of a split."""
  for number, (place, row) in enumerate(source.rows()):
    if max_rows is not None and number >= max_rows:
      return
    try:
      rendered = job.prompt.render(row, seed=f'{job.info.name}/{number}')
    except errors.UserError as error:
      raise errors.UserError(f'{place}, {job.name}: {error}') from error
    if rendered is None:
      skipped.add(split, 'the template does not apply')
    elif job.scored and rendered.targets not in rendered.choices:
      skipped.add(split, 'the target is none of the choices')
    else:
      yield rendered


def _write_notes(jobs: Sequence[Job], out: Path) -> None:
  names = sorted({job.info.dataset for job in jobs})
  cards = ''.join(
      f'- {name}: https://huggingface.co/datasets/{name}\n' for name in names
  )
  (out / 'LICENCES.md').write_text(_NOTES + cards, encoding='utf-8')


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
