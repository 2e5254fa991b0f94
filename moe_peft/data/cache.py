# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the cache of a SeqIO task: TFRecord files, without Beam.

The layout is SeqIO's own: `SPLIT.tfrecord-00000-of-00001`, `info.SPLIT.json`,
`stats.SPLIT.json` and `COMPLETED`. Beside them lies `prepared.json`: from what
the cache was made, and the checksums of its files.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import rich.console
import rich.progress
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import packages
from moe_peft.data import rows as rows_lib

_RECORD = 'prepared.json'


def read_record(folder: Path) -> dict[str, Any] | None:
  """Returns `prepared.json` of a whole cache, else None."""
  try:
    record = json.loads((folder / _RECORD).read_text(encoding='utf-8'))
    files = record['sha256'].items()
    whole = (
        files
        and {'recipe', 'rows'} <= record.keys()
        and (folder / 'COMPLETED').exists()
        # The record of a stranger may name any file of this machine.
        and all(Path(file).name == file for file, _ in files)
        and all(packages.sha256(folder / file) == sha for file, sha in files)
    )
  except (
      OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
  ):
    return None
  return record if whole else None


def identity(folder: Path) -> str:
  """SHA-256 over what a cache says of itself, sizes of files included."""
  digest = hashlib.sha256()
  for path in sorted(folder.iterdir()):
    content = path.read_bytes() if path.suffix == '.json' else b''
    digest.update(repr((path.name, path.stat().st_size, content)).encode())
  return digest.hexdigest()


def reuse(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns `prepared.json` of a cache that is finished, else None.

  Args:
    folder: The cache.
    recipe: What it is to be made from.

  Raises:
    errors.UserError: It was made from something else.
  """
  record = read_record(folder)
  if record is not None and record['recipe'] != recipe:
    raise errors.UserError(
        'The cache was made from other rows, or in another way.', folder,
        'Give another --out, or remove that folder.',
    )
  return record


def track(items: Sequence[Any], console: rich.console.Console) -> Iterable[Any]:
  """Yields tasks to prepare; shows a bar of progress in a terminal."""
  return rich.progress.track(
      items, 'tasks', console=console, disable=not console.is_terminal
  )


def write(
    task: seqio.Task,
    folder: Path,
    splits: Mapping[str, Callable[[], Iterable[rows_lib.Row]]],
    recipe: Mapping[str, Any],
    num_shards: int = 1,
    scored: bool = False,
    training: Sequence[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes the cache of a task; it appears when it is whole.

  Args:
    task: The task; its steps up to `CacheDatasetPlaceholder` are applied.
    folder: Where the cache will be.
    splits: Functions that return the rows of each split.
    recipe: What it is made from, for `prepared.json`.
    num_shards: Files of a split.
    scored: The task expands answer choices (ranking.rank_classification).
    training: Splits of a scored task that have the right choices only.
    notes: More for `prepared.json`, which does not decide what is made.

  Returns:
    The content of `prepared.json`.
  """
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  rows, constant = {}, {}
  for split, read in splits.items():
    answers = collections.Counter()
    convert = _with_choices if scored else _with_targets
    examples = convert(read, answers, split in training)
    with _dataset(examples, _CHOICES if scored else _TARGETS) as dataset:
      rows[split] = _write_split(task, partial, split, dataset, num_shards)
    most = max(answers.values(), default=0)
    constant[split] = 100 * most / max(answers.total(), 1)
  record = {
      'recipe': dict(recipe),
      **(notes or {}),
      'rows': rows,
      # Percent right of a model that always gives the most frequent answer;
      # where the choices are scored, the most frequent place among them.
      'constant_answer': constant,
      'sha256': {
          path.name: packages.sha256(path) for path in sorted(partial.iterdir())
      },
  }
  _write_json(partial / _RECORD, record)
  (partial / 'COMPLETED').touch()
  shutil.rmtree(folder, ignore_errors=True)
  partial.rename(folder)
  return record


def _write_json(path: Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def _write_split(
    task: seqio.Task,
    folder: Path,
    split: str,
    rows: tf.data.Dataset,
    num_shards: int,
) -> int:
  """Writes the files of one split and returns the number of examples."""
  dataset = task.preprocess_precache(rows, seed=0)
  lengths = {name: [] for name in task.output_features}
  count = 0
  with contextlib.ExitStack() as stack:
    writers = []
    for i in range(num_shards):
      file = folder / f'{split}.tfrecord-{i:05d}-of-{num_shards:05d}'
      writers.append(stack.enter_context(tf.io.TFRecordWriter(str(file))))
    for example in dataset.as_numpy_iterator():
      # SeqIO stores integers only.
      stored = {
          name: int(x) if isinstance(x, np.bool_) else x
          for name, x in example.items()
      }
      record = seqio.dict_to_tfexample(stored).SerializeToString()
      writers[count % num_shards].write(record)
      count += 1
      for name, of_feature in lengths.items():
        of_feature.append(len(example[name]))
  _write_json(
      folder / f'info.{split}.json',
      {
          'num_shards': num_shards,
          'features': {
              name: {'shape': spec.shape.as_list(), 'dtype': spec.dtype.name}
              for name, spec in dataset.element_spec.items()
          },
          'seqio_version': seqio.__version__,
      },
  )
  stats = {'examples': count}
  for name, of_feature in lengths.items():
    stats[f'{name}_tokens'] = sum(of_feature)
    stats[f'{name}_max_tokens'] = max(of_feature, default=0)
  _write_json(folder / f'stats.{split}.json', stats)
  return count


_TEXT = tf.TensorSpec((), tf.string)
# What the first preprocessors of tasks expect.
_TARGETS = {'inputs': _TEXT, 'targets': _TEXT}
_CHOICES = {
    'inputs': _TEXT,
    'choices': tf.TensorSpec((None,), tf.string),
    'label': tf.TensorSpec((), tf.int32),
    'training': tf.TensorSpec((), tf.bool),
}


def _with_targets(read, answers: collections.Counter, training: bool):
  del training
  for row in read():
    answers[row.targets] += 1
    yield {'inputs': row.inputs, 'targets': row.targets}


def _with_choices(read, answers: collections.Counter, training: bool):
  for row in read():
    label = row.choices.index(row.targets)
    answers[label] += 1
    yield {
        'inputs': row.inputs,
        'choices': np.array(row.choices, object),
        'label': label,
        'training': training,
    }


@contextlib.contextmanager
def _dataset(
    examples: Iterator[Mapping[str, Any]], signature: Mapping[str, Any]
) -> Iterator[tf.data.Dataset]:
  """A dataset of examples; what they raise comes through as it is."""
  raised: list[Exception] = []

  def generate():
    try:
      yield from examples
    except Exception as error:
      raised.append(error)
      raise

  try:
    yield tf.data.Dataset.from_generator(generate, output_signature=signature)
  except tf.errors.OpError:
    if raised:  # TensorFlow hides what a generator raises.
      raise raised[0] from None
    raise
