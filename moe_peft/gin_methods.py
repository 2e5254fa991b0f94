# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Method files read by themselves, outside of gin's global configuration.

Gin has one configuration in a process, and what it has wrapped looks it up at
every call. Who builds two models, or none by gin, needs values instead. Here
`@molora.MoLoRA` becomes `functools.partial(molora.MoLoRA, rank=4, ...)` and
`@selection.TopK()` an object.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import importlib
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_values


@dataclasses.dataclass(frozen=True)
class _Macro:
  """`%NAME`, or a constant's."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
  """`@target`, or the result of its call."""

  target: Any
  call: bool


class MethodFile:
  """The macros and bindings of a method's gin file, and of what it includes."""

  def __init__(self, name: str):
    """Reads a file.

    Args:
      name: Name of a file of gin/methods/, as 'molora', or the path of another.

    Raises:
      errors.UserError: There is no such file, or it cannot be read by itself.
    """
    self.macros: dict[str, Any] = {}
    self._used: set[str] = set()
    self._bindings: dict[Any, dict[str, Any]] = {}
    self._modules: dict[str, Any] = {}
    self._file = name
    shipped = gin_files.resource('gin/methods')
    names = sorted(file.stem for file in shipped.glob('*.gin'))
    if name in names:
      self._read(shipped / f'{name}.gin')
    elif Path(name).is_file():
      self._read(Path(name))
    else:
      near = difflib.get_close_matches(name, names, n=1) or ['molora']
      raise errors.UserError(
          f'There is no method {name!r}.',
          where='method',
          remedy=f'Did you mean {near[0]!r}? There are {", ".join(names)}.',
      )

  @property
  def options(self) -> list[str]:
    """Names of the macros that it sets or refers to."""
    return sorted(self.macros.keys() | self._used)

  def set(self, name: str, value: Any) -> None:
    """Sets a macro.

    Raises:
      errors.UserError: The file has no such macro, or the value is not allowed.
    """
    known = self.options
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
      raise errors.UserError(
          f'{self._file} has no option {name.lower()!r}.',
          where=name.lower(),
          remedy='It has ' + ', '.join(map(str.lower, known))
          + (f'. Did you mean {near[0].lower()!r}?' if near else '.'),
      )
    gin_values.check(name, value, name.lower())
    self.macros[name] = value

  def value(self, name: str) -> Any:
    """The value of a macro, with all that it refers to."""
    return self._resolve(_Macro(name))

  def _read(self, file: Path) -> None:
    from gin import config_parser

    text = file.read_text(encoding='utf-8')
    for statement in config_parser.ConfigParser(text, self):
      if isinstance(statement, config_parser.IncludeStatement):
        included = Path(statement.filename)
        self._read(
            included if included.is_file()
            else gin_files.resource(statement.filename)
        )
      elif isinstance(statement, config_parser.ImportStatement):
        if not statement.module.startswith('__gin__'):
          module = importlib.import_module(statement.module)
          self._modules[statement.bound_name()] = module
      elif isinstance(statement, config_parser.BindingStatement):
        if statement.arg_name:
          target = self._find(statement.selector)
          arguments = self._bindings.setdefault(target, {})
          arguments[statement.arg_name] = statement.value
        else:
          self.macros[statement.selector] = statement.value

  def _find(self, selector: str) -> Any:
    module, _, name = selector.partition('.')
    found = getattr(self._modules.get(module), name, None)
    if found is None:
      raise errors.UserError(
          f'{selector} is in no module that the file imports.', self._file
      )
    return found

  def _resolve(self, value: Any) -> Any:
    if isinstance(value, tuple | list):
      return type(value)(map(self._resolve, value))
    if isinstance(value, Mapping):
      return {k: self._resolve(x) for k, x in value.items()}
    if isinstance(value, _Macro):
      if value.name not in self.macros:
        raise errors.UserError(
            f'{value.name} has no value.',
            where=value.name.lower(),
            remedy=f'Give {value.name.lower()}=...',
        )
      return self._resolve(self.macros[value.name])
    if isinstance(value, _Reference):
      bound = self._resolve(self._bindings.get(value.target, {}))
      made = functools.partial(value.target, **bound)
      return made() if value.call else made
    return value

  # What gin's parser asks for while it reads.

  def configurable_reference(self, name: str, evaluate: bool) -> _Reference:
    return _Reference(self._find(name), evaluate)

  def macro(self, name: str) -> _Macro:
    self._used.add(name)
    return _Macro(name)
