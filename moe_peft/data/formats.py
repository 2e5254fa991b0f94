# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the columns of a user's rows mean.

A format is recognized by the names of the columns of the first row. If several
fit, the user says which one is meant: it is never guessed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
from typing import Any

from moe_peft import errors
from moe_peft.data import examples
from moe_peft.data import messages
from moe_peft.data import row_parsers

Parse = Callable[[Mapping[str, Any], str], examples.Parsed]


@dataclasses.dataclass(frozen=True)
class Format:
  """A format.

  Attributes:
    columns: Those that every row has.
    parse: Makes an example of a row and its place; errors.UserError if it is
      none.
    says: What is read from where, the end of a sentence.
    inputs_end: Whether inputs end with the end of a sequence, as T5's do, also
      where the model is a decoder.
  """

  columns: tuple[str, ...]
  parse: Parse
  says: str
  inputs_end: bool = False


def inputs_and_targets(keys: row_parsers.Keys) -> Format:
  """The format of rows with columns of these names."""
  columns = (keys.inputs, keys.targets, keys.choices)
  return Format(
      tuple(filter(None, columns)),
      lambda row, place: row_parsers.pair(row, keys, place),
      'inputs and targets',
      inputs_end=True,
  )


def recognize(
    columns: Sequence[str], name: str | None, keys: row_parsers.Keys, place: str
) -> Format:
  """The format of rows with such columns.

  Args:
    columns: Columns of the first row.
    name: What the user calls it, one of `FORMATS`, or None.
    keys: Columns of inputs and targets, which the user may have named.
    place: Place of the first row, for messages.

  Raises:
    errors.UserError: None fits, several do, or there is none of this name.
  """
  formats = {'inputs_targets': inputs_and_targets(keys), **FORMATS}
  if name in formats:
    return formats[name]
  if name is not None:
    raise errors.UserError(
        f'There is no format {name!r}.', 'local.register_task.row_format',
        f'They are {", ".join(formats)}.',
    )
  if keys != row_parsers.Keys():
    return formats['inputs_targets']  # Who names its columns means this one.
  fits = {k: x for k, x in formats.items() if {*x.columns} <= {*columns}}
  if len(fits) > 1:
    raise errors.UserError(
        f'The columns {sorted(columns)} fit several formats: '
        f'{", ".join(fits)}.', place,
        f"Say which one it is: local.register_task.row_format = "
        f"'{next(iter(fits))}'.",
    )
  if not fits:
    raise _unknown(columns, formats, place)
  (found,) = fits.values()
  return found


def _unknown(columns, formats, place) -> errors.UserError:
  wanted = sorted({x for of in formats.values() for x in of.columns})
  near = [
      f'{found[0]!r}'
      for column in columns
      if (found := difflib.get_close_matches(column, wanted, n=1))
  ]
  listed = '; '.join(
      f'{name}: {", ".join(of.columns)}' for name, of in formats.items()
  )
  hint = f'Did you mean {" and ".join(near)}? ' if near else ''
  return errors.UserError(
      f'The columns {sorted(columns)} are those of no format ({listed}).',
      place,
      f'{hint}Rename them, or name them by inputs_key and targets_key of '
      'register_task.',
  )


FORMATS: Mapping[str, Format] = {
    'messages': Format(
        ('messages',), messages.of_messages, 'chat messages'
    ),
    'sharegpt': Format(
        ('conversations',), messages.of_sharegpt,
        'conversations of ShareGPT',
    ),
    'prompt_completion': Format(
        ('prompt', 'completion'), row_parsers.prompt_completion,
        'prompts and completions',
    ),
    'alpaca': Format(
        ('instruction', 'output'), row_parsers.alpaca, 'instructions of Alpaca'
    ),
    'preference': Format(
        ('chosen', 'rejected'), row_parsers.preference, 'pairs of answers'
    ),
    'text': Format(
        ('text',),
        row_parsers.text,
        'texts, all of which is learned',
    ),
    'tokens': Format(('input_ids',), row_parsers.tokens, 'token ids'),
}
