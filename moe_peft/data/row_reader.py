# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of a user to examples that are not tokenized yet."""

from collections.abc import Callable, Sequence
import dataclasses

from moe_peft import errors
from moe_peft.data import examples
from moe_peft.data import formats
from moe_peft.data import local_files
from moe_peft.data import messages
from moe_peft.data import row_parsers
from moe_peft.data import rows


class RowReader:
  """Reads files of one format, which the first row shows.

  Attributes:
    format: The format; None before the first row.
  """

  def __init__(
      self,
      keys: row_parsers.Keys,
      row_format: str | None,
      check_target: Callable[[str], None],
      id_key: str | None = None,
  ):
    """Says what is known before anything is read.

    Args:
      keys: Columns of inputs and targets.
      row_format: Name of the format, if the user gives it.
      check_target: Raises errors.UserError for answers that metrics cannot
        judge.
      id_key: Column of the ids of rows, if they have some.
    """
    self.format: formats.Format | None = None
    self._keys, self._name, self._check = keys, row_format, check_target
    self._id_key = id_key

  def __call__(self, paths: str | Sequence[str]) -> list[examples.Parsed]:
    """Reads all rows of the files into memory.

    Args:
      paths: Path, glob pattern, or list of them.

    Raises:
      errors.UserError: Anything wrong; the message names file and row.
    """
    result = []
    for file in local_files.find(paths):
      count = len(result)
      for place, row in local_files.examples(file):
        result.append(self._parse(row, place))
      if len(result) == count:
        raise errors.UserError('The data file is empty.', file)
    return result

  def _parse(self, row, place: str) -> examples.Parsed:
    if self.format is None:
      self.format = formats.recognize(
          list(row), self._name, self._keys, place
      )
    parsed = self.format.parse(row, place)
    try:
      self._check(_answer(parsed))
    except errors.UserError as error:
      raise errors.UserError(error.what, place, error.remedy) from error
    if self._id_key is None:
      return parsed
    return dataclasses.replace(parsed, example_id=self._id(row, place))

  def _id(self, row, place: str) -> str:
    value = row.get(self._id_key)
    if type(value) not in (str, int) or value == '':
      raise errors.UserError(
          f'Every row needs {self._id_key!r}, a name or a whole number, not '
          f'{value!r:.60}.', place,
      )
    return str(value)


def _answer(parsed: examples.Parsed) -> str:
  """The text that metrics compare with."""
  if isinstance(parsed, messages.Conversation):
    return parsed.messages[parsed.answers[-1]]['content']
  return parsed.targets if isinstance(parsed, rows.Row) else ''
