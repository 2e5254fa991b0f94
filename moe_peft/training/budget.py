# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Picks the size of a method for a given number of trainable parameters.

Equal-parameter comparisons are one flag: `--gin.PARAM_BUDGET=0.005` (a share of
the base) or `--gin.PARAM_BUDGET=500000`. The rank is chosen, or, where a method
has none, the number of experts.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

import gin
import jax

from moe_peft import errors
from moe_peft.core import trainable

# Tried in this order.
SIZE_MACROS = ('RANK', 'NUM_EXPERTS')


@dataclasses.dataclass(frozen=True)
class Choice:
  """What was chosen.

  Attributes:
    macro: Name of the gin macro that was set.
    value: Its value.
    num_params: Trainable parameters.
    allowed: Trainable parameters that the budget allows.
  """

  macro: str
  value: int
  num_params: int
  allowed: int

  def __str__(self) -> str:
    return (
        f'PARAM_BUDGET allows {self.allowed:,} trainable parameters: '
        f'{self.macro} = {self.value} trains {self.num_params:,}'
    )


def apply(
    param_budget: float,
    init: Callable[[], Mapping[str, jax.Array]],
    trainable_regex: str = trainable.ADAPTER_REGEX,
    macro: str | None = None,
) -> Choice:
  """Sets the macro of the method's size to the largest within the budget.

  Args:
    param_budget: A number of parameters, or, below 1, a share of the base.
    init: Makes the nested parameters of a fresh model; is only traced.
    trainable_regex: Which parameters train.
    macro: Name of the macro to set; by default the first of `SIZE_MACROS` that
      the configuration has.

  Returns:
    The choice; the gin configuration holds it.

  Raises:
    errors.UserError: If there is no such macro, or the smallest size is too
      large.
  """
  if param_budget <= 0:
    raise errors.UserError(
        f'PARAM_BUDGET = {param_budget} must be positive: a share of the base '
        'below 1, or a number of parameters.'
    )
  macro = _find_macro(macro)

  @functools.cache
  def shapes(size: int):
    _bind(macro, size)
    # A function of its own each time: JAX remembers what it has traced.
    return trainable.flatten(jax.eval_shape(lambda: init()))

  def count(size: int) -> int:
    trained, _ = trainable.split(shapes(size), trainable_regex)
    return trainable.num_params(trained)

  smallest = _smallest(macro)
  allowed = int(param_budget)
  if param_budget < 1:
    base = {
        path: shape
        for path, shape in shapes(smallest).items()
        if not trainable.is_adapter(path)
    }
    allowed = int(param_budget * trainable.num_params(base))
  size = solve(count, allowed, smallest, macro)
  _bind(macro, size)
  return Choice(macro, size, count(size), allowed)


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
        f'PARAM_BUDGET allows {allowed:,} trainable parameters, but already '
        f'{name} = {smallest} trains {least:,}. Allow more, or choose fewer '
        'SITES or experts.'
    )
  slope = count(smallest + 1) - least
  if slope <= 0:
    raise errors.UserError(
        f'PARAM_BUDGET: {name} does not change how many parameters train. '
        'Name another macro with BUDGET_MACRO.'
    )
  steps = (allowed - least) // slope
  if count(smallest + steps) == least + steps * slope:
    return smallest + steps  # A straight line: the next one is too large.
  size = smallest + steps
  while count(size) > allowed:
    size -= 1
  while count(size + 1) <= allowed:
    size += 1
  return size


def _find_macro(name: str | None) -> str:
  names = (name,) if name else SIZE_MACROS
  for candidate in names:
    if _value(candidate) is not None:
      return candidate
  raise errors.UserError(
      f'PARAM_BUDGET has nothing to choose: the configuration has no macro '
      f'{" or ".join(names)}. Set the size by hand, or name a macro that is a '
      'whole number with BUDGET_MACRO.'
  )


def _value(macro: str) -> int | None:
  value = gin.query_parameter(f'%{macro}') if _is_bound(macro) else None
  return value if isinstance(value, int) else None


def _is_bound(macro: str) -> bool:
  return (macro, 'gin.macro') in gin.config._CONFIG


def _bind(macro: str, value: int) -> None:
  with gin.unlock_config():
    gin.bind_parameter(f'{macro}/gin.macro.value', value)


def _smallest(macro: str) -> int:
  """One; of experts as many as are selected, and two for a choice."""
  if macro != 'NUM_EXPERTS':
    return 1
  return max(2, _value('NUM_SELECTED_EXPERTS') or 0)
