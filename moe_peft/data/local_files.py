# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a user and reads their rows, each with its place.

Here a row is an object of columns; `formats.py` says what they mean.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import os
import re
from typing import Any

import tensorflow as tf

from moe_peft import errors
from moe_peft.data import arrow_files
from moe_peft.data import text_files

_JSON = re.compile(r'\.jsonl?(\.gz)?$')
_TABLE = re.compile(r'\.[ct]sv(\.gz)?$')
# Beam and TFDS write shards with names such as x.tfrecord-00000-of-00008.
_TFRECORD = re.compile(r'\.tfrecords?(-\d+-of-\d+)?(\.gz)?$')
# Characters of a cell; the csv module's own limit is shorter than documents.
_MAX_CELL = 10_000_000


def find(paths: str | Sequence[str]) -> list[str]:
  """Expands a path, a glob pattern or a list of them.

  A folder is one that the library `datasets` has saved; its files are found.

  Raises:
    errors.UserError: Nothing is there, or a file is of another format.
  """
  found = []
  for pattern in [paths] if isinstance(paths, str) else paths:
    pattern = os.path.expanduser(str(pattern))
    try:
      # A name may hold what patterns are made of.
      files = [pattern] if tf.io.gfile.exists(pattern) else _matched(pattern)
      folders = [file for file in files if tf.io.gfile.isdir(file)]
    except tf.errors.OpError as error:
      raise errors.UserError(f'It cannot be read: {error}', pattern) from error
    if files and files == folders:
      files = [x for folder in folders for x in arrow_files.in_folder(folder)]
    files = [file for file in files if file not in folders]
    if not files:
      raise errors.UserError(
          'There is no such data file.', pattern,
          'Give an existing .jsonl, .json, .parquet, .csv or .tfrecord file, '
          'or a pattern that matches some.',
      )
    found.extend(files)
  for file in found:
    _reader(file)
  return found


def _matched(pattern: str) -> list[str]:
  """The files that a pattern names; no hidden ones unless it names them so.

  Raises:
    errors.UserError: It has `**`, by which TensorFlow means one folder.
  """
  if '**' in pattern:
    raise errors.UserError(
        '** does not stand for any number of folders here.', pattern,
        'Give a list of patterns, one for each depth, as in folder/*/*.jsonl.',
    )
  # From the end: TensorFlow may write the beginning in another way.
  parts = lambda path: path.split('/')[::-1]
  hides = lambda file: any(
      found.startswith('.') and not named.startswith('.')
      for found, named in zip(parts(file), parts(pattern), strict=False)
  )
  return sorted(x for x in tf.io.gfile.glob(pattern) if not hides(x))


def examples(file: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (place, row) of one file.

  Args:
    file: Its path, as `find` returns it.

  Raises:
    errors.UserError: Anything wrong; the message names file and line (text),
      row (tables) or record (TFRecord), counted from 1.
  """
  if os.path.exists(file) and not os.path.isfile(file) and (
      not os.path.isdir(file)
  ):
    # A pipe would be waited for, and cannot be read twice.
    raise errors.UserError('It is no regular file.', file, 'Give a file.')
  try:
    yield from _reader(file)(file)
  except (tf.errors.OpError, OSError) as error:
    raise errors.UserError(f'It cannot be read: {error}', file) from error


def _reader(file: str):
  if _JSON.search(file):
    is_lines = file.removesuffix('.gz').endswith('.jsonl')
    return json_lines if is_lines else _json_rows
  if file.endswith(arrow_files.ENDINGS):
    return arrow_files.rows
  if _TABLE.search(file):
    return _table_rows
  if _TFRECORD.search(file):
    return _records
  raise errors.UserError(
      'The data file has an unknown format.', file,
      'Its name must end in .jsonl, .json, .csv, .tsv or .tfrecord (.gz may '
      'follow), .parquet or .arrow.',
  )


def _content(file: str) -> bytes:
  with tf.io.gfile.GFile(file, 'rb') as opened:
    content = opened.read()
  return text_files.unzip(content, file) if file.endswith('.gz') else content


def json_lines(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) of a JSON Lines file, .gz or not.

  Raises:
    errors.UserError: As `text_files.json_lines`, or the .gz file is broken.
  """
  yield from text_files.json_lines(_content(file), file)


def _json_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  yield from text_files.json_rows(_content(file), file)


def _table_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Rows of a table whose first line names the columns."""
  csv.field_size_limit(_MAX_CELL)
  # What the lines are is the csv module's to say: cells may hold line feeds.
  content = text_files.decode(_content(file), file)
  table = content.lstrip('\r\n')
  blank = content[: len(content) - len(table)].count('\n')
  text = io.StringIO(table, newline='')
  delimiter = '\t' if file.removesuffix('.gz').endswith('.tsv') else ','
  reader = csv.DictReader(text, delimiter=delimiter, strict=True)
  try:
    if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
      raise errors.UserError(
          'Two columns have one name.', f'{file}, line {blank + 1}'
      )
    for number, row in enumerate(reader, start=1):
      place = f'{file}, row {number}'
      if None in row or None in row.values():
        raise errors.UserError(
            f'It does not have {len(reader.fieldnames)} cells, one for each '
            'column.', place,
            'Quote cells that hold commas or line breaks.',
        )
      yield place, row
  except csv.Error as error:
    raise errors.UserError(
        f'It is no CSV: {error}.', f'{file}, line {blank + reader.line_num + 1}'
    ) from error


def _check_lengths(content: bytes, file: str) -> None:
  """Raises errors.UserError for a record that is longer than its file.

  TensorFlow would ask for as much memory as the record says that it needs.
  """
  start = 0
  while start < len(content):
    # A length, its checksum, the record, its checksum.
    size = int.from_bytes(content[start : start + 8], 'little')
    start += 8 + 4 + size + 4
  if start > len(content):
    raise errors.UserError('Its last record is cut short.', file,
                           'Copy it again.')


def _records(file: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  _check_lengths(_content(file), file)
  compression = 'GZIP' if file.endswith('.gz') else ''
  dataset = tf.data.TFRecordDataset(file, compression_type=compression)
  for number, record in enumerate(dataset.as_numpy_iterator(), start=1):
    place = f'{file}, record {number}'
    example = tf.train.Example()
    try:
      example.ParseFromString(record)
    except Exception as error:
      # The class of protobuf's error differs between its implementations.
      raise errors.UserError('It is no tf.train.Example.', place) from error
    yield place, {
        key: _feature_value(feature)
        for key, feature in example.features.feature.items()
    }


def _feature_value(feature: tf.train.Feature) -> Any:
  field = feature.WhichOneof('kind')
  if field is None:
    return []
  values = list(getattr(feature, field).value)
  if field == 'bytes_list':
    try:
      values = [value.decode('utf-8') for value in values]
    except UnicodeDecodeError:
      # Pictures and the like are wrong only where a text is asked for.
      return values
  return values[0] if len(values) == 1 else values
