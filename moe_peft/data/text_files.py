# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Lines of text and of JSON, with the place of each for messages.

A line ends at a line feed or at a carriage return with a line feed, nowhere
else: `str.splitlines` would also cut at U+0085 and at form feeds, which stand
inside of texts. A byte order mark at the beginning of a file is skipped.
"""

from collections.abc import Iterator
import gzip
import io
import json
import os
from typing import Any
import zlib

from moe_peft import errors

# Most characters of a line of JSON: a file without line feeds is no JSON Lines.
_MAX_CHARACTERS = 10_000_000
# Most levels of a value of JSON.
_MAX_DEPTH = 100
# Most that a gzip file may grow: texts shrink to a third, or to a twentieth
# where they repeat.
_MAX_RATIO = 100
_MIN_UNZIPPED = 2**26
_LFS = b'version https://git-lfs.github.com/spec/'
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'


def is_lfs_pointer(file: str | os.PathLike) -> bool:
  """Whether git has left a note in the place of a file, as without its LFS."""
  try:
    with open(file, 'rb') as opened:
      return opened.read(len(_LFS)) == _LFS
  except OSError:
    return False


def unzip(content: bytes, file: str | os.PathLike) -> bytes:
  """Returns the content of a gzip file.

  Raises:
    errors.UserError: The file is broken or cut short, or holds so much more
      than it has that it is made to fill the memory.
  """
  most = max(_MIN_UNZIPPED, _MAX_RATIO * len(content))
  try:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
      found = stream.read(most + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UserError(
        f'It is no whole gzip file: {error}.', file, 'Copy it again.'
    ) from error
  if len(found) > most:
    raise errors.UserError(
        f'It holds more than {_MAX_RATIO} times its own size, which texts do '
        'not.', file, 'If it is meant so, give it unpacked.',
    )
  return found


def lines(
    content: bytes, file: str | os.PathLike
) -> Iterator[tuple[str, str]]:
  """Yields (place, line) of UTF-8 text, the lines without their ends.

  Args:
    content: The bytes of the file.
    file: Its name, for messages.

  Raises:
    errors.UserError: A line is no UTF-8; the message has its number.
  """
  # One at a time: a list of short lines takes many times what they have.
  stream = io.BytesIO(content.removeprefix(_BYTE_ORDER_MARK))
  for number, line in enumerate(stream, start=1):
    place = f'{file}, line {number}'
    try:
      yield place, line.removesuffix(b'\n').removesuffix(b'\r').decode('utf-8')
    except UnicodeDecodeError as error:
      raise errors.UserError(
          'The line is not UTF-8 text.', place, 'Convert the file to UTF-8.'
      ) from error


def decode(content: bytes, file: str | os.PathLike) -> str:
  """The whole of UTF-8 text, ends of lines as they are; as of `lines`."""
  try:
    return content.removeprefix(_BYTE_ORDER_MARK).decode('utf-8')
  except UnicodeDecodeError:
    for _ in lines(content, file):
      pass  # It names the line.
    raise


def json_lines(
    content: bytes, file: str | os.PathLike
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) of JSON Lines; lines without text are skipped.

  Args:
    content: The bytes of the file.
    file: Its name, for messages.

  Raises:
    errors.UserError: A line is not one JSON object, is longer than 10 million
      characters, has a key twice, NaN or infinity, half of a surrogate pair,
      which no text can hold, or more than 100 levels; the message has the
      number of the line.
  """
  for place, line in lines(content, file):
    if not line.strip():
      continue
    if len(line) > _MAX_CHARACTERS:
      raise errors.UserError(
          f'The line is no JSON Lines: it has {len(line):,} characters.', place,
          'Each line must be one JSON object.',
      )
    value = parse(line, place, 'Each line must be one JSON object.')
    yield place, _checked_object(value, place, 'line')


def json_rows(
    content: bytes, file: str | os.PathLike
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) of a JSON file: one array of objects, or lines.

  Args:
    content: The bytes of the file.
    file: Its name, for messages.

  Raises:
    errors.UserError: As `json_lines`; the place in an array is the number of
      its row.
  """
  if not content.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b'['):
    yield from json_lines(content, file)
    return
  text = '\n'.join(line for _, line in lines(content, file))
  remedy = 'It must hold one array of objects, or an object a line.'
  for number, value in enumerate(parse(text, str(file), remedy), start=1):
    place = f'{file}, row {number}'
    yield place, _checked_object(value, place, 'row')


def parse(text: str, place: str, remedy: str) -> Any:
  """The value of a JSON text that users have written.

  Args:
    text: The text.
    place: Where it stands, for messages.
    remedy: What to write instead.

  Raises:
    errors.UserError: It is no JSON, or has a key twice, NaN or infinity, half
      of a surrogate pair, which no text can hold, or more than 100 levels.
  """
  try:
    value = _decode(text)
    if '\\u' in text:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError as error:
    raise errors.UserError(
        f'{error.object[error.start]!a} is half of a surrogate pair and no '
        'character.', place, 'Correct the text.',
    ) from error
  except (ValueError, RecursionError) as error:
    # Python says how to raise a limit, which is no remedy here.
    what = str(error).partition('; use sys.')[0]
    raise errors.UserError(
        f'It is broken JSON: {what}.', place, remedy
    ) from error
  if text.count('[') + text.count('{') > _MAX_DEPTH and is_deep(value):
    raise errors.UserError(
        f'It is nested too deeply, in more than {_MAX_DEPTH} levels.', place,
        remedy,
    )
  return value


def is_deep(value: Any) -> bool:
  """Whether a value of JSON has more levels than anything that is meant.

  What reads it next may call itself for each of them, and templates do.
  """
  level = [value] if isinstance(value, (dict, list)) else []
  for _ in range(_MAX_DEPTH):
    level = [
        x for node in level
        for x in (node.values() if isinstance(node, dict) else node)
        if isinstance(x, (dict, list))
    ]
  return bool(level)


def _checked_object(value: Any, place: str, what: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise errors.UserError(
        f'The {what} is no JSON object: {json.dumps(value)!s:.60}.', place,
        'It must be one, such as {"prompt": "...", "completion": "..."}.',
    )
  return value


def _constant(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON')


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {twice!r:.60} stands twice in an object')
  return value


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant
).decode
