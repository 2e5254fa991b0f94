# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of Parquet files, and of the Arrow files of the library `datasets`.

Read by the package pyarrow, a batch at a time; nothing in them is code.
"""

from collections.abc import Iterator
import json
import os
from typing import Any

import tensorflow as tf

from moe_peft import errors
from moe_peft.data import packages

ENDINGS = ('.parquet', '.arrow')
# A folder that Dataset.save_to_disk has written holds the first of these, one
# of DatasetDict.save_to_disk the second, beside a folder for each split.
_STATE = 'state.json'
_SPLITS = 'dataset_dict.json'
# What files in the format that can be read in any order (Feather) begin with.
_FILE = b'ARROW1'


def rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row), the place for messages.

  Args:
    file: A .parquet file, or an .arrow file in either of Arrow's formats.

  Raises:
    errors.UserError: pyarrow is not installed, or the file is broken.
  """
  pa = packages.import_optional('pyarrow', 'parquet')
  number = 0
  try:
    for batch in _batches(pa, file):
      if len(set(batch.schema.names)) < len(batch.schema.names):
        raise errors.UserError('Two columns have one name.', file)
      batch.validate(full=True)  # Else offsets may point anywhere.
      for row in batch.to_pylist():
        number += 1
        yield f'{file}, row {number}', row
  except (  # Times may be such that Python has none.
      pa.ArrowException, OSError, ValueError, OverflowError, tf.errors.OpError
  ) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'It cannot be read: {str(error).rstrip(".")}.', file,
        'Write it again.',
    ) from error


def _batches(pa: Any, file: str) -> Iterator[Any]:
  if os.path.exists(file):
    source = pa.memory_map(file)
  else:  # In a bucket.
    with tf.io.gfile.GFile(file, 'rb') as opened:
      source = pa.BufferReader(opened.read())
  if file.endswith('.parquet'):
    parquet = packages.import_optional('pyarrow.parquet', 'parquet')
    return parquet.ParquetFile(source).iter_batches()
  is_file = source.read(len(_FILE)) == _FILE
  source.seek(0)
  if not is_file:
    return iter(pa.ipc.open_stream(source))
  opened = pa.ipc.open_file(source)
  return (opened.get_batch(i) for i in range(opened.num_record_batches))


def in_folder(folder: str) -> list[str]:
  """The .arrow files of a folder that the library `datasets` has saved.

  Args:
    folder: What `Dataset.save_to_disk` has written.

  Raises:
    errors.UserError: It is no such folder, or one of several splits.
  """
  at = lambda name: os.path.join(folder, name)
  if tf.io.gfile.exists(at(_SPLITS)):
    found = tf.io.gfile.listdir(folder)
    splits = sorted(
        name.rstrip('/') for name in found
        if tf.io.gfile.isdir(at(name))
    )
    raise errors.UserError(
        f'This folder holds several splits: {", ".join(splits)}.', folder,
        f'Name their folders, as in train = {at((splits or ["train"])[0])!r}.',
    )
  try:
    with tf.io.gfile.GFile(at(_STATE), 'rb') as opened:
      listed = json.loads(opened.read())['_data_files']
    # A name leads nowhere else than into the folder.
    return [at(os.path.basename(entry['filename'])) for entry in listed]
  except (
      tf.errors.OpError, ValueError, LookupError, TypeError, RecursionError
  ) as error:
    raise errors.UserError(
        'Dataset.save_to_disk has not written this folder.', folder,
        "Name its files, as in 'folder/*.parquet'.",
    ) from error
