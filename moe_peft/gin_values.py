# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether values of macros and bindings are allowed, once gin is parsed.

A macro has its line in `gin_rules.RULES`. A parameter of ours that has the name
of a macro, such as `molora.MoLoRA.rank`, has its range too; all others must be
of the type that they are annotated with. What a reference to a function gives
is known when it is called; it is not judged here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from moe_peft import errors
from moe_peft import gin_rules
from moe_peft import gin_types


def check(name: str, value: Any, where: str = '') -> None:
  """Checks a value against the rule of a macro; others may be anything.

  Args:
    name: Name of the macro.
    value: The value.
    where: What the user set, by default the macro.

  Raises:
    errors.UserError: The value is not allowed.
  """
  rule = gin_rules.RULES.get(name)
  wrong = rule(value) if rule else ''
  if wrong:
    where = where or name
    raise errors.UserError(f'{where} = {value!r:.80} {wrong}.', where)


def check_config(
    place: Callable[[str, str, str], str] = lambda *key: '',
) -> None:
  """Checks all macros and bindings that gin has parsed.

  Args:
    place: Says in a sentence where a binding was set; called with its scope,
      the full name of what it is bound to, and its own name, as gin has them.

  Raises:
    errors.UserError: A value is not allowed, or a macro refers to itself.
  """
  import gin

  def order(item):
    # What is bound to a macro is wrong because of it.
    (_, selector), arguments = item
    return selector != 'gin.macro', '%' in repr(arguments)

  bindings = sorted(gin.config._CONFIG.items(), key=order)
  for (scope, selector), arguments in bindings:
    ours = selector.startswith('moe_peft.')
    hints = gin_types.hints(selector) if ours else {}
    for name, bound in arguments.items():
      try:
        value = _literal(bound)
      except LookupError:
        continue
      key = scope, selector, name
      try:
        if selector == 'gin.macro':
          check(scope, value)
        elif ours:
          key = _macro_key(bound) or key
          check(name.upper(), value, _as_written(*key))
          gin_types.check(value, hints.get(name, Any), _as_written(*key))
      except errors.UserError as error:
        error.remedy = place(*key)
        raise


def _macro_key(value: Any) -> tuple[str, str, str] | None:
  """The key of the macro that a value is, or None."""
  name, _, kind = getattr(value, 'scoped_selector', '').rpartition('/')
  return (name, kind, 'value') if kind == 'gin.macro' else None


def _as_written(scope: str, selector: str, name: str) -> str:
  if selector == 'gin.macro':
    return scope
  short = '.'.join([*selector.split('.')[-2:], name])
  return f'{scope}/{short}' if scope else short


def _literal(value: Any, within: Sequence[str] = ()) -> Any:
  """A bound value with its macros replaced.

  Raises:
    LookupError: It holds what only a call can tell.
    errors.UserError: A macro refers to itself.
  """
  import gin

  if isinstance(value, (tuple, list)):
    return type(value)(_literal(x, within) for x in value)
  if isinstance(value, dict):
    return {k: _literal(x, within) for k, x in value.items()}
  if not hasattr(value, 'scoped_selector'):
    return value
  key = _macro_key(value)
  if key is None:
    raise LookupError(value)
  name, *_ = key
  if name in within:
    raise errors.UserError(
        f'The macro refers to itself: {" = ".join([*within, name])}.', name
    )
  return _literal(gin.query_parameter(f'%{name}'), (*within, name))
