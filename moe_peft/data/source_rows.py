# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the rows of a data set in local folders, with their own columns.

Read are JSON Lines, Parquet, and the Arrow files that the `datasets` library
writes. The columns are those of the Hugging Face data set of the same name;
labels are numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft.data import arrow_files
from moe_peft.data import local_files
from moe_peft.data import packages

_ENDINGS = ('.jsonl', '.jsonl.gz', '.json', '.parquet', '.arrow')
# Other names that data sets are kept under: name, subset, renamed columns.
_ALIASES = {
    ('super_glue', 'rte'): (
        'glue', 'rte', {'sentence1': 'premise', 'sentence2': 'hypothesis'}
    ),
    ('super_glue', 'boolq'): ('boolq', None, {'answer': 'label'}),
}
# What the `datasets` library writes beside its rows.
_NO_ROWS = ('dataset_info.json', 'state.json')
_NO_SUBSET = ('none', 'default', 'plain_text')
_SPLIT_NAMES = {'validation': ('validation', 'dev', 'val')}


@dataclasses.dataclass(frozen=True)
class Source:
  """The files of one split of a data set.

  Attributes:
    files: The files, in their order.
    renamed: Old -> new name of columns.
  """

  files: tuple[Path, ...]
  renamed: tuple[tuple[str, str], ...] = ()

  @functools.cached_property
  def sha256(self) -> str:
    """The hash of all files together."""
    digest = hashlib.sha256()
    for file in self.files:
      digest.update(packages.sha256(file).encode())
    return digest.hexdigest()

  def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row), the place for messages.

    Raises:
      errors.UserError: A file is broken.
    """
    renamed = dict(self.renamed)
    for file in self.files:
      for place, row in _read(file):
        row = {renamed.get(key, key): value for key, value in row.items()}
        # Templates use labels as numbers of answer choices.
        if isinstance(row.get('label'), bool):
          row['label'] = int(row['label'])
        yield place, row


def find(
    folders: Sequence[Path],
    name: str,
    subset: str | None,
    split: str,
    part: str | None = None,
) -> Source | None:
  """Looks for a split of a data set.

  `NAME/SUBSET/SPLIT.jsonl`, `NAME/SPLIT-00000-of-00002.parquet` and
  `hf_datasets/NAME/SUBSET/SPLIT/data.arrow` are all found, the latter at any
  depth.

  Args:
    folders: Where to look; the first that has it wins.
    name: Data set, as `super_glue`.
    subset: Its subset, or None.
    split: `train` or `validation`.
    part: Part of the split, for ANLI: its files are named `train_r1`.

  Returns:
    The source, or None.
  """
  names = [(name, subset, {})]
  if (name, subset) in _ALIASES:
    names.append(_ALIASES[name, subset])
  for folder in folders:
    for root in [folder, *sorted(folder.glob('**/hf_datasets'))]:
      for other_name, other_subset, renamed in names:
        for place in _places(root / other_name, other_subset):
          files = _split_files(place, split, part)
          if files:
            return Source(files, tuple(renamed.items()))
  return None


def _places(folder: Path, subset: str | None) -> list[Path]:
  if subset is not None:
    return [folder / subset]
  return [folder, *(folder / name for name in _NO_SUBSET)]


def _split_files(folder: Path, split: str, part: str | None):
  for name in _SPLIT_NAMES.get(split, (split,)):
    stem = f'{name}_{part}' if part else name
    found: dict[tuple[Path, str], list[Path]] = {}
    for pattern in (f'{stem}.*', f'{stem}-*', f'{stem}/*'):
      for file in folder.glob(pattern):
        ending = next((x for x in _ENDINGS if file.name.endswith(x)), None)
        if ending and file.name not in _NO_ROWS:
          found.setdefault((folder / pattern, ending), []).append(file)
    if len(found) > 1:  # Surely the same rows twice.
      kinds = ', '.join(sorted(f'{path}{end}' for path, end in found))
      raise errors.UserError(
          f'{stem} is there in several forms: {kinds}.', folder,
          'Keep one of them.',
      )
    for files in found.values():
      return tuple(sorted(files))
  return ()


def _read(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
  if file.suffix in arrow_files.ENDINGS:
    return arrow_files.rows(str(file))
  return local_files.json_lines(str(file))
