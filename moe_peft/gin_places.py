# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a binding was set: gin itself does not remember.

Files and flags are read once more, without importing anything, and only when
there is an error to report.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moe_peft import gin_names


def place(
    files: Sequence[str],
    flags: Sequence[str],
    find: Callable[[str], str | None],
    scope: str,
    selector: str,
    name: str,
) -> str:
  """Where the value of a binding comes from, in a sentence.

  Args:
    files: Gin files in the order in which they were parsed.
    flags: Bindings that were parsed after them, `NAME = VALUE`.
    find: The path of a file that another one includes; None for files that gin
      finds in packages.
    scope: Scope of the binding; of a macro its name.
    selector: Full name of what it is bound to.
    name: Name of the parameter.

  Returns:
    A text such as `It is set in a.gin, line 3.`, empty if nothing sets it.
  """
  found = ''
  for statement, where in _bindings(files, flags, find):
    key = statement[:3]
    if not key[2]:  # A macro.
      key = '/'.join(filter(None, key[:2])), 'gin.macro', 'value'
    of = f'.{selector}'.endswith(f'.{key[1]}')
    if of and (key[0], key[2]) == (scope, name):
      found = f'It is set {where}.'
  return found


def _bindings(files, flags, find) -> Iterator[tuple[Any, str]]:
  """Binding statements in their order, with their places."""
  from gin import config_parser

  for file in files:
    with open(file, encoding='utf-8') as stream:
      for statement in config_parser.ConfigParser(
          stream, gin_names.Delegate()
      ):
        if isinstance(statement, config_parser.IncludeStatement):
          included = filter(None, [find(statement.filename)])
          yield from _bindings(included, (), find)
        elif isinstance(statement, config_parser.BindingStatement):
          yield statement, f'in {file}, line {statement.location.line_num}'
  for flag in flags:
    for statement in config_parser.ConfigParser(flag, gin_names.Delegate()):
      yield statement, f'by --gin.{flag.partition(" =")[0]}'
