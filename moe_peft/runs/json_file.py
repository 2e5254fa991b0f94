# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""JSON files of a run: one object each, with the version of their form.

JSON has no NaN and no infinity: both are written as null, and null is read as
NaN.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft.data import text_files

# Version of all files of a run. Files of version 1 do not name theirs.
VERSION = 2
_NAMES = {
    str: 'text', int: 'a whole number', float: 'a number', list: 'a list',
    dict: 'an object', (str, dict): 'text or an object',
}
_REQUIRED = object()
# Limit of whole numbers: what NumPy holds and every format prints is smaller.
_LIMIT = 2**63
_REMEDY = 'Restore the file, or make it again with the command that wrote it.'


def dumps(value: Any, indent: int | None = None) -> str:
  """JSON of values that may hold arrays, tuples, NaN and infinity."""
  return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write(
    path: Path, value: Mapping[str, Any], indent: int | None = None
) -> None:
  """Writes an object and the version of its form, whole or not at all."""
  atomic.write(path, dumps({'version': VERSION, **value}, indent) + '\n')


def number(value: Any) -> float:
  """A number of JSON; NaN for null and for anything that is no number."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return math.nan
  try:
    return float(value)
  except OverflowError:  # An integer beyond float64.
    return math.nan


def loads(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: It is no JSON, or nothing could write it: it is nested deeply,
      or has half of a surrogate pair.
  """
  try:
    value = json.loads(text)
    if '\\u' in text:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except RecursionError as e:
    raise ValueError('it is nested too deeply') from e
  if text_files.is_deep(value):
    raise ValueError('it is nested too deeply')
  return value


def damaged(path: Path, what: str) -> errors.UserError:
  """The error for a file that is not of its form."""
  return errors.UserError(what, path, _REMEDY)


def read_text(path: Path) -> str:
  """The text of a file; `UserError` where it cannot be read."""
  try:
    return path.read_text(encoding='utf-8', errors='replace')
  except OSError as e:
    raise damaged(path, f'The file cannot be read ({e.strerror}).') from e


def read(path: Path) -> 'Fields | None':
  """The fields of a file that holds one JSON object; None if it is absent.

  Raises:
    errors.UserError: It holds anything else, or a later program wrote it.
  """
  if not path.is_file():
    return None
  try:
    value = loads(read_text(path))
  except ValueError as e:
    raise damaged(path, f'The file is not valid JSON ({e}).') from e
  fields = Fields(path, value)
  version = fields.get('version', int, 1)
  if version > VERSION:
    raise errors.UserError(
        f'The file is of version {version}, and this program reads versions '
        f'up to {VERSION}.', path, 'Install a newer moe-peft-jax.',
    )
  return fields


class Fields:
  """The fields of a JSON object, checked as they are read."""

  def __init__(self, path: Path, value: Any, of: str = ''):
    """Takes an object.

    Args:
      path: The file that holds it.
      value: The object.
      of: What messages call it within the file.

    Raises:
      errors.UserError: It is no object.
    """
    if not isinstance(value, dict):
      what = f'"{of}"' if of else 'The file'
      raise damaged(path, f'{what} must be a JSON object.')
    self._path, self._of, self.value = path, f' of {of}' if of else '', value

  def error(self, name: str, rule: str) -> errors.UserError:
    """The error for a field that is not as it must be."""
    return damaged(self._path, f'"{name}"{self._of} {rule}.')

  def get(self, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    """A field.

    Args:
      name: Name of the field.
      kind: One of `_NAMES`.
      default: Value of a field that is absent or null.

    Raises:
      errors.UserError: It is of another kind, or required and absent.
    """
    value = self.value.get(name)
    if value is None and default is not _REQUIRED:
      return default
    kinds = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, kinds):
      raise self.error(name, f'must be {_NAMES[kind]}')
    if isinstance(value, int) and abs(value) >= _LIMIT:
      raise self.error(name, 'must be below 2**63')
    return value

  def mapping(self, name: str, kind: type) -> dict[str, Any]:
    """An object whose values are of one kind; empty where it is absent.

    A null is NaN where numbers are expected.
    """
    value = self.get(name, dict, {})
    fields = Fields(self._path, value, name + self._of)
    default = math.nan if kind is float else _REQUIRED
    return {key: fields.get(key, kind, default) for key in value}

  def texts(self, name: str) -> tuple[str, ...]:
    """A list of texts, or one text; empty where it is absent."""
    value = self.value.get(name)
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(
        isinstance(x, str) for x in values
    ):
      raise self.error(name, 'must be a list of texts')
    return tuple(values)

  def object(self, name: str) -> 'Fields | None':
    """An object; None where it is absent."""
    value = self.value.get(name)
    if value is None:
      return None
    return Fields(self._path, value, name + self._of)

  def objects(self, name: str) -> list['Fields']:
    """A list of objects."""
    return [
        Fields(self._path, value, f'{name}[{i}]{self._of}')
        for i, value in enumerate(self.get(name, list))
    ]

  def nested(self, name: str, kind: type) -> dict[str, dict[str, Any]]:
    """An object of objects whose values are of one kind."""
    outer = self.mapping(name, dict)
    fields = Fields(self._path, outer, name + self._of)
    return {key: fields.mapping(key, kind) for key in outer}

  def by_site(
      self, name: str, shape: Callable[[int], tuple[int, ...]]
  ) -> dict[str, np.ndarray]:
    """An array for each of the objects in "sites".

    Args:
      name: A list of nested lists.
      shape: The shape of an array, by the number of its first axis.
    """
    sites, values = self.objects('sites'), self.get(name, list)
    if len(sites) != len(values):
      raise self.error(name, 'must have an entry for each of "sites"')
    return {
        site.get('path', str): self.as_numbers(
            name, value, shape(len(value) if isinstance(value, list) else 0)
        )
        for site, value in zip(sites, values, strict=True)
    }

  def numbers(
      self, name: str, shape: Sequence[int], default: Any = None
  ) -> np.ndarray:
    """A nested list as <float64>[shape]; null and infinity become NaN."""
    return self.as_numbers(name, self.value.get(name, default), shape)

  def as_numbers(
      self, name: str, value: Any, shape: Sequence[int]
  ) -> np.ndarray:
    """As `numbers`, of a value that is part of the field `name`."""
    try:
      array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
      array = np.empty(())
    if array.shape != tuple(shape):
      raise self.error(name, f'must be numbers of shape {list(shape)}')
    return np.where(np.isfinite(array), array, np.nan)


def _plain(value: Any) -> Any:
  """Lists, objects and what JSON can hold."""
  if isinstance(value, Mapping):
    return {str(key): _plain(x) for key, x in value.items()}
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [_plain(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return os.fspath(value) if isinstance(value, os.PathLike) else value
