# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads JSON Lines and TFRecord files into rows; messages name the place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import difflib
import re
from typing import Any

import tensorflow as tf

from moe_peft import errors
from moe_peft.data import rows
from moe_peft.data import text_files

_JSON_LINES = re.compile(r'\.jsonl?(\.gz)?$')
# Beam and TFDS write shards with names such as x.tfrecord-00000-of-00008.
_TFRECORD = re.compile(r'\.tfrecords?(-\d+-of-\d+)?(\.gz)?$')


@dataclasses.dataclass(frozen=True)
class Keys:
  """Where a row's parts are found.

  Attributes:
    inputs: key of the inputs.
    targets: key of the targets.
    choices: key of the list of choices, or None.
    fixed_choices: the choices of all rows, empty where they have their own.
  """

  inputs: str
  targets: str
  choices: str | None = None
  fixed_choices: tuple[str, ...] = ()


def find(paths: str | Sequence[str]) -> list[str]:
  """Expands a path, a glob pattern or a list of them.

  Raises:
    errors.UserError: nothing is there, or a file is of another format.
  """
  found = []
  for pattern in [paths] if isinstance(paths, str) else paths:
    try:
      files = sorted(tf.io.gfile.glob(str(pattern)))
    except tf.errors.OpError as error:
      raise errors.UserError(f'It cannot be read: {error}', pattern) from error
    files = [file for file in files if not tf.io.gfile.isdir(file)]
    if not files:
      raise errors.UserError(
          'There is no such data file.', pattern,
          'Give an existing .jsonl or .tfrecord file, or a pattern that '
          'matches some.',
      )
    found.extend(files)
  for file in found:
    if not _JSON_LINES.search(file) and not _TFRECORD.search(file):
      raise errors.UserError(
          'The data file has an unknown format.', file,
          'Its name must end in .jsonl or .tfrecord (.gz may follow).',
      )
  return found


def read(
    paths: str | Sequence[str],
    keys: Keys,
    check_target: Callable[[str], None] = lambda target: None,
) -> list[rows.Row]:
  """Reads all rows of the files into memory.

  Args:
    paths: path, glob pattern, or list of them.
    keys: where a row's parts are found.
    check_target: raises errors.UserError for targets that cannot be used.

  Raises:
    errors.UserError: anything wrong; the message names file and line (JSON) or
      record (TFRecord), counted from 1.
  """
  result = []
  for file in find(paths):
    examples = json_lines if _JSON_LINES.search(file) else _records
    count = len(result)
    try:
      for place, example in examples(file):
        row = _row(example, keys, place)
        try:
          check_target(row.targets)
        except errors.UserError as error:
          raise errors.UserError(error.what, place, error.remedy) from error
        result.append(row)
    except (tf.errors.OpError, OSError) as error:
      raise errors.UserError(f'It cannot be read: {error}', file) from error
    if len(result) == count:
      raise errors.UserError('The data file is empty.', file)
  return result


def json_lines(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) of a JSON Lines file, .gz or not.

  Raises:
    errors.UserError: as `text_files.json_lines`, or the .gz file is broken.
  """
  yield from text_files.json_lines(_content(file), file)


def _content(file: str) -> bytes:
  with tf.io.gfile.GFile(file, 'rb') as raw:
    content = raw.read()
  return text_files.unzip(content, file) if file.endswith('.gz') else content


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


def _get(example: Mapping[str, Any], key: str, place: str) -> Any:
  if key not in example:
    near = difflib.get_close_matches(key, example, n=1)
    hint = f'Did you mean {near[0]!r}? ' if near else ''
    raise errors.UserError(
        f'There is no key {key!r}, but {sorted(example)}.', place,
        f'{hint}Set inputs_key, targets_key or choices_key of register_task.',
    )
  return example[key]


def _text(value: Any, key: str, place: str) -> str:
  if not isinstance(value, str) or not value.strip():
    raise errors.UserError(
        f'{key!r} must be a nonempty string, not {value!r:.60}.', place
    )
  return value


def are_choices(choices: Any) -> bool:
  """Whether it is a list of two or more different texts."""
  return (
      isinstance(choices, (list, tuple))
      and all(isinstance(c, str) and c.strip() for c in choices)
      and len(set(choices)) == len(choices) > 1
  )


def _row(example: Mapping[str, Any], keys: Keys, place: str) -> rows.Row:
  inputs = _text(_get(example, keys.inputs, place), keys.inputs, place)
  targets = _text(_get(example, keys.targets, place), keys.targets, place)
  choices = keys.fixed_choices
  if keys.choices is not None:
    choices = _get(example, keys.choices, place)
    if not are_choices(choices):
      raise errors.UserError(
          f'{keys.choices!r} must be a list of two or more different nonempty '
          f'strings, not {choices!r:.60}.', place,
      )
  if choices and targets not in choices:
    raise errors.UserError(
        f'{keys.targets!r} is {targets!r}, which is none of the choices '
        f'{list(choices)}.', place,
    )
  return rows.Row(inputs, targets, choices=tuple(choices), place=place)
