# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin says of a run's method, to tell whether it has changed.

Many settings change no shape (ALPHA, the number of selected experts, capacity,
factors of losses): a run would go on with another method, and in silence.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
from pathlib import Path
import re

import gin

from moe_peft import errors
from moe_peft.runs import config_file
from moe_peft.training import experiment as experiment_lib

# Macros that hold a method; what they refer to, one over the other, is of it.
_ROOTS = ('ADAPTER_RULES', 'LOSS_FACTORS')
# Parameters that say how experts run and not what they compute.
_SAME_NUMBERS = {'execution'}
# Macros and references of a value. A text with such a sign names nothing.
_NAMES = re.compile(r'[%@]([\w./]+)')


def settings() -> dict[str, str]:
  """The bindings that adapters and their losses are made of, as text.

  What the experiment is given too (TRAIN_STEPS, SEED) is left out: it changes
  on purpose, or is compared elsewhere. So is `execution`, which other devices
  may want another of.
  """
  bound = config_file.bindings(gin.config_str(), Path(config_file.FILE))
  fields = dataclasses.fields(experiment_lib.Experiment)
  left_out = {field.name.upper() for field in fields} | _SAME_NUMBERS
  found, waiting = {}, list(_ROOTS)
  while waiting:
    of = _without_scope(waiting.pop())
    for name, value in bound.items():
      # A binding is of a macro, or of the parameter of an object.
      of_object, _, parameter = name.rpartition('.')
      owner = _without_scope(of_object or name)
      if owner == of and parameter not in left_out and name not in found:
        found[name] = value
        waiting += _NAMES.findall(value)
  return found


def _without_scope(name: str) -> str:
  return name.rpartition('/')[2]


def check(
    step: int, then: Mapping[str, str] | None, now: Mapping[str, str]
) -> None:
  """Checks that a run goes on with the method that it has trained.

  Args:
    step: The step of its checkpoint.
    then: `settings` when it was saved; None if the version that saved it knew
      of none.
    now: `settings`.

  Raises:
    errors.UserError: If the method has changed.
  """
  then = then or now
  changed = [
      name for name in sorted({**then, **now})
      if not _is_same(then.get(name), now.get(name))
  ]
  if not changed:
    return
  # Users set macros; other bindings stand in files.
  name = next(filter(str.isidentifier, changed), changed[0])
  was, is_now = (x.get(name, 'not set') for x in (then, now))
  raise errors.UserError(
      f'The method has changed since step {step}: {name} was {was}, and now it '
      f'is {is_now}.',
      where=name,
      remedy='Put back what it was, or choose another MODEL_DIR; '
      '--gin.ALLOW_CHANGED_METHOD=True goes on with the method of now.',
  )


def _is_same(one: str | None, other: str | None) -> bool:
  """Whether two values are, of which 8 and 8.0 are one."""
  if one is None or other is None or one == other:
    return one == other
  with contextlib.suppress(ValueError):
    return float(one) == float(other)
  return False
