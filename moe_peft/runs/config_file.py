# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`config.gin`, read as text: nothing that it names is imported."""

from collections.abc import Mapping
from pathlib import Path
import tokenize

from gin import config_parser

from moe_peft import gin_trust
from moe_peft.runs import json_file

FILE = gin_trust.FILE


class _AsWritten(config_parser.ParserDelegate):
  """Keeps references as the text that they are in gin."""

  def configurable_reference(self, name, evaluate):
    return _Text(f'@{name}{"()" if evaluate else ""}')

  def macro(self, name):
    return _Text(f'%{name}')


class _Text(str):
  """Text without quotes, on its own or within lists."""

  __repr__ = str.__str__


def bindings(text: str, path: Path) -> dict[str, str]:
  """What a configuration binds.

  Args:
    text: Text of a gin file without includes, as `gin.config_str()` makes it.
    path: The file, for messages.

  Returns:
    The value of every macro, by its name, and of every parameter, by
    'scope/selector.name'; each on one line, however gin has wrapped it.

  Raises:
    errors.UserError: It is not gin.
  """
  found = {}
  try:
    for x in config_parser.ConfigParser(text, _AsWritten()):
      if isinstance(x, config_parser.BindingStatement):
        scope = f'{x.scope}/' if x.scope else ''
        name = f'.{x.arg_name}' if x.arg_name else ''
        found[f'{scope}{x.selector}{name}'] = repr(x.value)
  except (
      SyntaxError, ValueError, RecursionError, tokenize.TokenError
  ) as e:
    raise json_file.damaged(path, f'The file is not gin ({e}).') from e
  return found


def macros(bound: Mapping[str, str]) -> dict[str, str]:
  """The macros among `bindings`."""
  return {name: value for name, value in bound.items() if name.isidentifier()}
