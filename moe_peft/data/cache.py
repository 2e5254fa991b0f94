# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the cache of a SeqIO task: TFRecord files, without Beam.

The layout is SeqIO's own: `SPLIT.tfrecord-00000-of-00001`, `info.SPLIT.json`,
`stats.SPLIT.json` and `COMPLETED`. Beside them lies `prepared.json`: from what
the cache was made, and the checksums of its files.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from moe_peft.data import rows as rows_lib
from moe_peft.data import source_rows

_RECORD = 'prepared.json'


def read_record(folder: Path) -> dict[str, Any] | None:
  """Returns `prepared.json` of a whole cache, else None."""
  try:
    record = json.loads((folder / _RECORD).read_text(encoding='utf-8'))
  except (OSError, json.JSONDecodeError):
    return None
  whole = (folder / 'COMPLETED').exists() and all(
      (folder / name).is_file()
      and source_rows.sha256(folder / name) == checksum
      for name, checksum in record['sha256'].items()
  )
  return record if whole else None


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
    task: the task; its steps up to `CacheDatasetPlaceholder` are applied.
    folder: where the cache will be.
    splits: functions that return the rows of each split.
    recipe: from what it is made, for `prepared.json`.
    num_shards: files of a split.
    scored: the task expands answer choices (preprocessors.rank_classification).
    training: splits of a scored task that have the right choices only.
    notes: more for `prepared.json`, which does not decide what is made.

  Returns:
    The content of `prepared.json`.
  """
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  rows, answers = {}, {}
  for split, read in splits.items():
    raised: list[Exception] = []
    answers[split] = collections.Counter()
    dataset = _dataset(
        read, scored, split in training, raised, answers[split]
    )
    try:
      rows[split] = _write_split(task, partial, split, dataset, num_shards)
    except tf.errors.OpError:
      if raised:  # TensorFlow hides what a generator raises.
        raise raised[0] from None
      raise
  record = {
      'recipe': dict(recipe),
      **(notes or {}),
      'rows': rows,
      # Percent right of who always gives the most frequent answer; where the
      # choices are scored, the most frequent place among them.
      'constant_answer': {
          split: 100 * max(counts.values(), default=0) / max(counts.total(), 1)
          for split, counts in answers.items()
      },
      'sha256': {
          path.name: source_rows.sha256(path)
          for path in sorted(partial.iterdir())
      },
  }
  (partial / _RECORD).write_text(
      json.dumps(record, indent=1) + '\n', encoding='utf-8'
  )
  (partial / 'COMPLETED').touch()
  shutil.rmtree(folder, ignore_errors=True)
  partial.rename(folder)
  return record


def _write_split(task, folder: Path, split: str, rows, num_shards: int) -> int:
  """Writes the files of one split and returns the number of examples."""
  dataset = task.preprocess_precache(rows, seed=0)
  names = list(task.output_features)
  total, longest = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
  count = 0
  with contextlib.ExitStack() as stack:
    writers = [
        stack.enter_context(
            tf.io.TFRecordWriter(
                str(
                    folder
                    / f'{split}.tfrecord-{i:05d}-of-{num_shards:05d}'
                )
            )
        )
        for i in range(num_shards)
    ]
    for example in dataset.as_numpy_iterator():
      # SeqIO stores integers only.
      stored = {
          name: int(x) if isinstance(x, np.bool_) else x
          for name, x in example.items()
      }
      record = seqio.dict_to_tfexample(stored).SerializeToString()
      writers[count % num_shards].write(record)
      count += 1
      for name in names:
        total[name] += len(example[name])
        longest[name] = max(longest[name], len(example[name]))
  info = {
      'num_shards': num_shards,
      'features': {
          name: {'shape': spec.shape.as_list(), 'dtype': spec.dtype.name}
          for name, spec in dataset.element_spec.items()
      },
      'seqio_version': seqio.__version__,
  }
  stats = {'examples': count}
  stats |= {f'{name}_tokens': total[name] for name in names}
  stats |= {f'{name}_max_tokens': longest[name] for name in names}
  for name, content in (('info', info), ('stats', stats)):
    (folder / f'{name}.{split}.json').write_text(
        json.dumps(content, indent=1) + '\n', encoding='utf-8'
    )
  return count


def _dataset(
    read,
    scored: bool,
    training: bool,
    raised: list[Exception],
    answers: collections.Counter,
) -> tf.data.Dataset:
  """The rows as the task's first preprocessor expects them.

  What `read` raises is added to `raised`, and the answers are counted.
  """
  text = tf.TensorSpec((), tf.string)
  signature = {'inputs': text, 'targets': text}
  if scored:
    signature = {
        'inputs': text,
        'choices': tf.TensorSpec((None,), tf.string),
        'label': tf.TensorSpec((), tf.int32),
        'training': tf.TensorSpec((), tf.bool),
    }

  def rows():
    try:
      yield from read()
    except Exception as error:
      raised.append(error)
      raise

  def generate():
    for row in rows():
      if scored:
        label = row.choices.index(row.targets)
        answers[label] += 1
        yield {
            'inputs': row.inputs,
            'choices': np.array(row.choices, object),
            'label': label,
            'training': training,
        }
      else:
        answers[row.targets] += 1
        yield {'inputs': row.inputs, 'targets': row.targets}

  return tf.data.Dataset.from_generator(generate, output_signature=signature)
