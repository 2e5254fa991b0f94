# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Picks the size of a method for a given number of trainable parameters.

Equal-parameter comparisons are one flag: `--gin.PARAM_BUDGET=0.005` (a share of
the base) or `--gin.PARAM_BUDGET=500000`. The rank is chosen, or, where a method
has none, the number of experts. The choice is a binding like any other: it is
printed as the flag it stands for, and `config.gin` of the run has it.

With the macro SCALE, the weight of an update stays ALPHA / RANK = SCALE
whatever the rank is; without it ALPHA stays.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import gin

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable

# They are tried in this order.
SIZE_MACROS = ('RANK', 'NUM_EXPERTS')
# Where less of a budget is used, a comparison is not at equal size.
_FILLED = 0.97


@dataclasses.dataclass(frozen=True)
class Choice:
  """What was chosen.

  Attributes:
    macro: Name of the gin macro of the size.
    value: Its value.
    num_params: Trainable parameters.
    allowed: Trainable parameters that the budget allows.
  """

  macro: str
  value: int
  num_params: int
  allowed: int

  def __str__(self) -> str:
    text = (
        f'PARAM_BUDGET allows {self.allowed:,} trainable parameters; '
        f'--gin.{self.macro}={self.value} trains {self.num_params:,}.'
    )
    if self.num_params >= _FILLED * self.allowed:
      return text
    return (
        f'{text} That is {self.num_params / self.allowed:.0%} of it: for a '
        'comparison at equal size change NUM_EXPERTS or SITES too.'
    )


def choose(
    param_budget: float,
    shapes: Callable[[str, int], Mapping[str, Any]],
    trainable_regex: str = trainable.ADAPTER_REGEX,
    macro: str | None = None,
) -> Choice:
  """Finds the largest size of the configured method within a budget.

  Args:
    param_budget: A number of parameters, or, below 1, a share of the base.
    shapes: Flat parameters, or their shapes, of a model in which a macro has a
      value: `shapes('RANK', 3)`.
    trainable_regex: Which parameters train.
    macro: Name of the macro to choose; by default the first of `SIZE_MACROS`
      that the configuration has.

  Raises:
    errors.UserError: If there is no such macro, or the smallest size is too
      large.
  """
  macro = _find_macro(macro)
  of_size = functools.cache(functools.partial(shapes, macro))

  def count(size: int) -> int:
    trained, _ = trainable.split(of_size(size), trainable_regex)
    return trainable.num_trained(trained)

  smallest = _smallest(macro)
  allowed = limit(param_budget, of_size(smallest))
  size = solve(count, allowed, smallest, macro)
  return Choice(macro, size, count(size), allowed)


def limit(param_budget: float, params: Mapping[str, Any]) -> int:
  """How many parameters a budget allows.

  Args:
    param_budget: A number of parameters, or, below 1, a share of the base.
    params: Flat parameters of the adapted model, or their shapes.
  """
  if param_budget >= 1:
    return int(param_budget)
  base = {k: x for k, x in params.items() if not trainable.is_adapter(k)}
  return int(param_budget * trainable.num_params(base))


def solve(
    count: Callable[[int], int], allowed: int, smallest: int, name: str = 'size'
) -> int:
  """Returns the largest size whose count is allowed.

  Args:
    count: Parameters of a size; grows with it, for most methods linearly.
    allowed: Most parameters.
    smallest: Smallest size that makes sense.
    name: What the size is called.

  Raises:
    errors.UserError: If the smallest size has more.
  """
  least = count(smallest)
  if least > allowed:
    raise errors.UserError(
        f'{allowed:,} trainable parameters are allowed, but {name} = '
        f'{smallest} already trains {least:,}.',
        where='PARAM_BUDGET',
        remedy='Allow more, or choose fewer SITES or experts.',
    )
  slope = count(smallest + 1) - least
  if slope <= 0:
    raise errors.UserError(
        f'{name} does not change how many parameters train.',
        where='PARAM_BUDGET',
        remedy='Name another macro with BUDGET_MACRO.',
    )
  steps = (allowed - least) // slope
  if count(smallest + steps) == least + steps * slope:
    return smallest + steps  # A straight line: the next one is too large.
  size, too_large = smallest, smallest + steps + 1
  while too_large - size > 1:  # Of squares, it would be many steps down.
    middle = (size + too_large) // 2
    if count(middle) > allowed:
      too_large = middle
    else:
      size = middle
  while count(size + 1) <= allowed:
    size += 1
  return size


def bindings(scale: float | None, choice: Choice | None) -> dict[str, Any]:
  """Values of the macros that a budget and a scale decide.

  Args:
    scale: SCALE, or None if ALPHA stays.
    choice: What the budget chose, or None if there is none.

  Raises:
    errors.UserError: If there is a scale and no ALPHA or RANK.
  """
  found = {} if choice is None else {choice.macro: choice.value}
  if scale is not None:
    for name in ('ALPHA', 'RANK'):
      if name not in gin_files.macros():
        raise errors.UserError(
            f'A scale is ALPHA / RANK, and the method has no macro {name}.',
            where='SCALE',
            remedy='Leave it None.',
        )
    rank = found.get('RANK', gin.query_parameter('%RANK'))
    found['ALPHA'] = float(f'{scale * rank:.6g}')
  return found


def _find_macro(name: str | None) -> str:
  names = (name,) if name else SIZE_MACROS
  for candidate in names:
    if _value(candidate) is not None:
      return candidate
  raise errors.UserError(
      f'The configuration has no macro {" or ".join(names)} that is a whole '
      'number.',
      where='BUDGET_MACRO' if name else 'PARAM_BUDGET',
      remedy='Set the size by hand, or name another macro with BUDGET_MACRO.',
  )


def _value(macro: str) -> int | None:
  if macro not in gin_files.macros():
    return None
  value = gin.query_parameter(f'%{macro}')
  return value if isinstance(value, int) else None


def _smallest(macro: str) -> int:
  """One, but of experts as many as are selected, and at least two."""
  if macro != 'NUM_EXPERTS':
    return 1
  return max(2, _value('NUM_SELECTED_EXPERTS') or 0)
