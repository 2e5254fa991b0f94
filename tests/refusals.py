# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How tests expect an error of the user's: by its fields, not its wording."""

from collections.abc import Iterator
import contextlib

import pytest

from moe_peft import errors


@contextlib.contextmanager
def refused(where: object, *names: object) -> Iterator[pytest.ExceptionInfo]:
  """Expects an errors.UserError.

  Args:
    where: The thing that is wrong: the field `where` of the error.
    *names: What its text must name besides: values that are wrong, macros that
      mend it, near names.

  Yields:
    What `pytest.raises` yields.
  """
  with pytest.raises(errors.UserError) as info:
    yield info
  error = info.value
  assert error.where == str(where), f'{error.where!r}: {error}'
  text = str(error)
  for name in names:
    assert str(name) in text, f'{name!r} is not in: {text}'
