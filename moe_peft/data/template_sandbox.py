# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sandbox in which a template of somebody else's runs.

Jinja's own keeps it from the process. It does not keep it from doubling a text
a hundred times, or from looping for years. So here everything that can grow
pays for what it reads and makes, before it does.
"""

from collections.abc import Callable, Mapping
import functools
import re
import threading
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2 import sandbox
from jinja2 import visitor

# Characters that one text may take; an element of a list costs as much as ten
# of them, a call or a turn of a loop as a hundred.
_MAX_WORK = 30_000_000
_ELEMENT, _CALL = 10, 100
# What may make its text as many times longer as it is told.
_AMPLIFIERS = frozenset(
    ['replace', 'join', 'format', 'format_map', 'translate']
)
_CONCAT, _BUILD = 'concat', 'build'  # Filters that stand for `~` and `[...]`.


class Environment(sandbox.ImmutableSandboxedEnvironment):
  """A sandbox with a bound on work, memory included."""

  intercepted_binops = frozenset(['+', '*', '**', '%'])

  def __init__(self, **options: Any):
    super().__init__(**options)
    self._work = threading.local()
    self.restart()
    del self.globals['lipsum']
    self.filters |= {_CONCAT: _concat, _BUILD: lambda value: value}
    self.filters = {
        name: self._paid(name, function)
        for name, function in self.filters.items()
    }

  def restart(self) -> None:
    """Begins another text."""
    self._work.left = _MAX_WORK

  def pay(self, amount: int) -> None:
    """Pays for work; jinja2.exceptions.SecurityError if it is too much."""
    self._work.left = getattr(self._work, 'left', _MAX_WORK) - _CALL - amount
    if self._work.left < 0:
      raise jinja2.exceptions.SecurityError('It works for too long.')

  def turn(self) -> None:
    """A turn of a loop, which pays as every call does."""

  def call(self, context, function, *args, **kwargs):
    self._pay_call(
        getattr(function, '__name__', ''), getattr(function, '__self__', ''),
        *args, *kwargs.values(),
    )
    return super().call(context, function, *args, **kwargs)

  def call_binop(self, context, operator, left, right):
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == '**' and numbers:
      self.pay(left.bit_length() * abs(right) ** 2)
    elif operator == '*' and numbers:
      self.pay(left.bit_length() + right.bit_length())
    elif operator == '*':
      self.pay(_weight(left) * _weight(right))
    elif operator == '%' and isinstance(left, str):
      self._pay_call('format', left, right)
    elif not numbers:
      self.pay(_weight(left) + _weight(right))
    return super().call_binop(context, operator, left, right)

  def _paid(self, name: str, function: Callable[..., Any]):
    passes = hasattr(function, 'jinja_pass_arg')

    @functools.wraps(function)  # What Jinja passes is an attribute.
    def paid(*args, **kwargs):
      value, *more = args[1:] if passes else args
      self._pay_call(name, value, *more, *kwargs.values())
      return function(*args, **kwargs)

    return paid

  def _pay_call(self, name: str, value: Any, *more: Any) -> None:
    """Pays for a filter or a method of a value."""
    is_text, added = isinstance(value, str), _weight(more)
    if name == 'replace' and is_text and all(
        isinstance(x, str) for x in more[:2]
    ):
      size = len(value) + value.count(more[0]) * sum(map(len, more[1:2]))
    elif name in _AMPLIFIERS:
      size = _weight(value) * added
    elif is_text or name in (_BUILD, _CONCAT):
      size = _weight(value)
    else:
      size = _ELEMENT * len(value) if isinstance(value, (list, dict)) else 0
    self.pay(size + added)
    if is_text and name.startswith('format') and re.search(r'\d{5}', value):
      raise jinja2.exceptions.SecurityError('It makes a text too long.')

  def _parse(self, source, name, filename):
    tree = _Meter().visit(super()._parse(source, name, filename))
    tree.set_environment(self)
    return tree


class _Meter(visitor.NodeTransformer):
  """Lets loops, `~` and literals go through the environment, where they pay."""

  def visit_For(self, node):
    self.generic_visit(node)
    turn = nodes.EnvironmentAttribute('turn', lineno=node.lineno)
    call = nodes.Call(turn, [], [], None, None, lineno=node.lineno)
    node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
    return node

  def visit_Concat(self, node):
    self.generic_visit(node)
    return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

  def visit_List(self, node):
    self.generic_visit(node)
    return _filtered(node, _BUILD)

  visit_Dict = visit_List

  def visit_Tuple(self, node):
    return self.visit_List(node) if node.ctx == 'load' else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
  return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _concat(parts: list[Any]) -> str:
  return ''.join(map(str, parts))


def _weight(value: Any) -> int:
  """Characters and elements of a value; a number counts itself.

  What is deeply nested may be written many times, although it is one object.
  """
  total, waiting = 0, [value]
  while waiting and total <= _MAX_WORK:
    value = waiting.pop()
    if isinstance(value, (str, bytes)):
      total += len(value)
    elif isinstance(value, int):
      total += abs(value)
    elif isinstance(value, (list, tuple, set, Mapping)):
      total += _ELEMENT * (1 + len(value))
      waiting += value.values() if isinstance(value, Mapping) else value
  return total
