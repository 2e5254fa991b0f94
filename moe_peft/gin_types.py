# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether values that gin binds are of the types that parameters name."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import types
import typing
from typing import Any

from moe_peft import errors


def check(value: Any, hint: Any, where: str) -> None:
  """Raises errors.UserError if a value is not of an annotated type."""
  if not fits(value, hint):
    hint = inspect.formatannotation(hint)
    raise errors.UserError(f'{where} = {value!r:.80} is no {hint}.', where)


def fits(value: Any, hint: Any) -> bool:
  """Whether a value is of an annotated type; protocols take anything."""
  origin, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, x) for x in inside)
  if origin in (None, types.NoneType):
    return value is None
  if origin is float:
    return type(value) in (int, float)
  if origin in (int, bool, str):
    return type(value) is origin
  if origin is Callable:
    return callable(value)
  if origin is Any or not isinstance(origin, type) or (
      getattr(origin, '_is_protocol', False)
  ):
    return True
  if not issubclass(origin, (Sequence, Mapping)) or hasattr(origin, '_fields'):
    return isinstance(value, origin)
  if issubclass(origin, Mapping):
    return isinstance(value, Mapping) and (
        not inside or all(fits(x, inside[1]) for x in value.values())
    )
  of = inside[0] if inside else Any
  if isinstance(value, str):  # A sequence of texts by Python's rules.
    return of in (str, Any)
  return isinstance(value, (tuple, list)) and all(fits(x, of) for x in value)


def hints(selector: str) -> Mapping[str, Any]:
  """Annotations of what a configurable takes."""
  import gin

  wrapped = gin.config._REGISTRY[selector].wrapped
  try:
    return typing.get_type_hints(wrapped)
  except (NameError, TypeError):  # A name that is imported for checkers alone.
    return {}
