# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the `config.gin` of a run may name.

A gin file is code: it imports modules and calls what it finds in them. The
files that users write are theirs to trust. The `config.gin` of a run often
comes from somebody else, so it is parsed here before gin sees it, and may
only name the parts that experiments are made of: nothing that reads and runs,
writes or deletes files.
"""

import re
from typing import Any

from moe_peft import errors

FILE = 'config.gin'
# Any module of these packages may be imported.
PACKAGES = ('moe_peft', 'optax', 'jax', 'flax', 't5x', 'seqio')
# What may be bound, called or given as a value: one public name of a module.
# A longer path would lead into what the module itself imports.
_NAMES = re.compile(
    '|'.join((
        r'moe_peft\.(core|methods|models|t5x)\.\w+\.NAME',
        r'moe_peft\.data\.(local|preferences|tfds_tasks|vocabularies|metrics)\.NAME',
        r'moe_peft\.data\.(catalog\.known|example_ids\.with_ids)',
        r'moe_peft\.data\.sets\.(commonsense|languages|math_problems|p3|words)\.NAME',
        r'moe_peft\.evaluation\.aggregate\.NAME',
        r'moe_peft\.training\.(experiment|objectives|schedules)\.NAME',
        r'optax\.(contrib\.)?NAME',
        r'flax\.linen\.(initializers\.)?NAME',
        r'flax\.traverse_util\.ModelParamTraversal',
        r'jax\.nn\.(initializers\.)?NAME',
        r'jax\.numpy\.(bfloat16|float\d+|u?int\d+)',
        r'seqio\.(\w+Vocabulary|\w+Logger|Evaluator)',
        r't5x\.examples\.\w+\.network\.NAME',
        r't5x\.(adafactor|models|optimizers|partitioning|trainer)\.[A-Z]\w*',
        r't5x\.(contrib\.moe\.)?partitioning\.standard_logical_axis_rules',
        r't5x\.utils\.(create_learning_rate_scheduler|[A-Z]\w*Config)',
    )).replace('NAME', '[A-Za-z]\\w*')
)


def check(text: str, file: str) -> None:
  """Checks that a configuration names nothing that is not on the list.

  Nothing is imported, and nothing that the file names is looked up.

  Args:
    text: Contents of the file.
    file: Its path, for messages.

  Raises:
    errors.UserError: For an import, a binding or a reference of another
      module, an include, and a configuration without dynamic registration,
      whose names would be those of any loaded module.
    SyntaxError, ValueError, tokenize.TokenError: If it is not gin.
  """
  from gin import config_parser

  names = _Names(file)
  for statement in config_parser.ConfigParser(text, names):
    line = statement.location.line_num
    if isinstance(statement, config_parser.IncludeStatement):
      raise names.refusal(f'includes {statement.filename!r}', line)
    if isinstance(statement, config_parser.ImportStatement):
      names.add_import(statement)
    elif getattr(statement, 'arg_name', None) != '':  # A macro has none.
      names.check(statement.selector, line)
    names.check_references(line)


class _Names:
  """The names that imports bind, and a delegate of gin's parser."""

  def __init__(self, file: str):
    self._file = file
    self._modules: dict[str, str] = {}
    self._references: list[str] = []
    self._dynamic = False

  def refusal(self, what: str, line: int) -> errors.UserError:
    return errors.UserError(
        f'Line {line} {what}; the configuration of a run may only name the '
        'parts of experiments.', where=self._file,
        remedy='If you trust whoever wrote it, add --trust_gin, which runs it '
        'as code.',
    )

  def add_import(self, statement: Any) -> None:
    """Notes what an import binds."""
    module = statement.module
    if statement.is_from and module == '__gin__.dynamic_registration':
      self._dynamic = True
      return
    if module == '__main__':
      raise errors.UserError(
          'It is of a run of T5X.', self._file,
          'Read that run with python -m t5x.eval or t5x.infer.',
      )
    package = module.partition('.')[0]
    if package not in PACKAGES:
      raise self.refusal(f'imports {module}', statement.location.line_num)
    whole = statement.is_from or statement.alias
    self._modules[statement.bound_name()] = module if whole else package

  def check(self, selector: str, line: int) -> None:
    """Raises errors.UserError if a selector is not on the list."""
    name, _, rest = selector.partition('.')
    module = self._modules.get(name)
    if not self._dynamic or module is None:
      raise self.refusal(f'names {selector}, which no import provides', line)
    if not _NAMES.fullmatch(f'{module}.{rest}'):
      raise self.refusal(f'names {module}.{rest}', line)

  def check_references(self, line: int) -> None:
    """The same for what the values of the last statement refer to."""
    while self._references:
      self.check(self._references.pop(), line)

  def configurable_reference(self, name: str, evaluate: bool) -> None:
    """Called by the parser for `@name` and `@name()`."""
    del evaluate
    self._references.append(name.rpartition('/')[2])

  def macro(self, name: str) -> None:
    """Called by the parser for `%NAME`: a value that the file binds."""
