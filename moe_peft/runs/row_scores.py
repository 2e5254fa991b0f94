# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rows of a task were right, as a short text: four rows a character."""

from collections.abc import Mapping, Sequence
import math
import re

import numpy as np

from moe_peft.runs import json_file

# A one stands before the rows: as digits of a number, leading zeros would be
# lost.
_BEGIN = '1'
_HEX = re.compile(r'[0-9a-f]+')


def pack(rows: Sequence[float]) -> str:
  """The text of scores that are all 0 or 1; '' of others, and of none."""
  if not len(rows) or not set(rows) <= {0, 1}:
    return ''
  return f'{int(_BEGIN + "".join(str(int(x)) for x in rows), 2):x}'


def unpack(text: str) -> np.ndarray:
  """The scores, <float64>[num_rows].

  Raises:
    ValueError: It is none that `pack` has returned.
  """
  bits = f'{int(text, 16):b}' if _HEX.fullmatch(text) else ''
  if len(bits) < 2:
    raise ValueError(f'{text[:40]!r} holds no rows')
  return np.array(list(bits.removeprefix(_BEGIN)), np.float64)


def read(
    fields: json_file.Fields, scores: Mapping[str, float]
) -> dict[str, str]:
  """The field `rows` of a file: what `pack` has returned, by task.

  Args:
    fields: Fields of the file; it may lack the field.
    scores: The mean of the rows of each task, in percent.

  Raises:
    errors.UserError: The field is damaged.
  """
  found = fields.mapping('rows', str)
  for task, text in found.items():
    try:
      mean = 100 * float(unpack(text).mean())
      if not math.isclose(mean, scores.get(task, math.nan), abs_tol=1e-6):
        raise ValueError(f'their mean is {mean:.4g}, and not the score')
    except ValueError as error:
      raise fields.error('rows', f'is damaged: {task}: {error}') from error
  return found
