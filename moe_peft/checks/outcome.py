# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a check says: nothing, that something does not hold, or why it left.

A check is a function of a `subject.Subject` that returns nothing if what it
looks for holds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Two ways to the same float32 numbers differ by rounding alone: at most by this
# much of the largest of them.
ROUNDING = 5e-5


class Failure(AssertionError):
  """Something does not hold; the text has the figures."""


class Skipped(Exception):
  """The check asks nothing of this configuration; the text says why."""


def equal(got: Any, want: Any, what: str) -> None:
  """Raises Failure unless two arrays are equal, bit for bit.

  Args:
    got: An array.
    want: What it must be.
    what: What they are, in the plural, as the beginning of a sentence.
  """
  got, want = np.asarray(got), np.asarray(want)
  if got.shape != want.shape or got.dtype != want.dtype:
    raise Failure(
        f'{what} are {got.dtype}{list(got.shape)} and not '
        f'{want.dtype}{list(want.shape)}.'
    )
  if got.tobytes() != want.tobytes():
    raise Failure(f'{what} differ by up to {difference(got, want):.3g}.')


def close(
    got: Any, want: Any, what: str, tolerance: float = ROUNDING
) -> None:
  """Raises Failure unless two arrays are equal but for rounding.

  Args:
    got: An array.
    want: What it must be.
    what: As of `equal`.
    tolerance: Largest difference as a share of the largest value, or of 1.
  """
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  if got.shape != want.shape:
    raise Failure(f'{what} are {list(got.shape)} and not {list(want.shape)}.')
  scale = max(np.abs(want).max(initial=0.0), 1.0)
  apart = difference(got, want)
  if not apart <= tolerance * scale:  # NaN is not equal to anything.
    raise Failure(
        f'{what} differ by up to {apart:.3g}, where the largest is '
        f'{scale:.3g}.'
    )


def close_trees(
    got: Mapping[str, Any],
    want: Mapping[str, Any],
    what: str,
    tolerance: float = ROUNDING,
) -> None:
  """As `close`, for arrays by name."""
  if got.keys() != want.keys():
    raise Failure(f'{what} are {sorted(got)} and not {sorted(want)}.')
  for name, value in want.items():
    close(got[name], value, f'{what} ({name})', tolerance)


def difference(got: Any, want: Any) -> float:
  """The largest difference of two arrays."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.abs(got - want).max(initial=0.0))
