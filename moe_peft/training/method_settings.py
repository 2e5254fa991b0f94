# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin says of a run's method, to tell whether it has changed.

Many settings change no shape (ALPHA, the number of selected experts, capacity,
factors of losses): a run would go on with another method, and in silence.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
from pathlib import Path
import re
from typing import Any

import gin

from moe_peft import errors
from moe_peft.runs import config_file
from moe_peft.training import experiment as experiment_lib

# Macros that hold a method; what they refer to, one over the other, is of it.
_ADAPTERS, _LOSSES = 'ADAPTER_RULES', 'LOSS_FACTORS'
# Parameters that say how experts run and not what they compute.
_SAME_NUMBERS = {'execution'}
# Their order is a part of the method, where it is told ids.
_IDS = 'EXAMPLE_IDS'
# Macros and references of a value. A text with such a sign names nothing.
_NAMES = re.compile(r'[%@]([\w./]+)')


def settings(
    roots: Sequence[str] = (_ADAPTERS, _LOSSES)
) -> dict[str, str]:
  """The bindings that adapters and their losses are made of, as text.

  What the experiment is given too (TRAIN_STEPS, SEED) is left out: it changes
  on purpose, or is compared elsewhere. So is `execution`, which other devices
  may want another of.

  Args:
    roots: Macros that hold the method.
  """
  return _of(gin.config_str(), Path(config_file.FILE), roots)


def of_t5x_run(folder: Any) -> dict[str, str]:
  """The same of a run of T5X, whose whole checkpoints note nothing.

  Args:
    folder: Its MODEL_DIR, a path that may be in a bucket.

  Returns:
    What its last start has written to config.gin; empty if that cannot be read,
    since T5X may have been killed while it wrote it.
  """
  file = folder / config_file.FILE
  with contextlib.suppress(OSError, ValueError, errors.UserError):
    return _of(file.read_text(), file, (_ADAPTERS, _LOSSES))
  return {}


def _of(config: str, file: Path, roots: Sequence[str]) -> dict[str, str]:
  """The `settings` of a configuration's text."""
  bound = config_file.bindings(config, file)
  fields = dataclasses.fields(experiment_lib.Experiment)
  left_out = {field.name.upper() for field in fields} - {_IDS} | _SAME_NUMBERS
  found, waiting = {}, list(roots)
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
  if _IDS not in then:  # Older versions did not say it.
    now = {name: x for name, x in now.items() if name != _IDS}
  if (name := _changed(then, now)) is not None:
    raise errors.UserError(
        f'The method has changed since step {step}: '
        f'{_difference(name, then, now)}.',
        where=name,
        remedy='Put back what it was, or choose another MODEL_DIR; '
        '--gin.ALLOW_CHANGED_METHOD=True goes on with the method of now.',
    )


def change_of_adapters(then: Mapping[str, str]) -> str | None:
  """How the adapters of now surely differ from those that were trained.

  Other files may bind the same in another way, so what is compared is what
  both give as a value.

  Args:
    then: `settings` when they were saved.

  Returns:
    A setting with both values; None if they are the same.
  """
  now = settings((_ADAPTERS,))
  plain = [
      x for x in then.keys() & now.keys()
      if not _NAMES.search(then[x]) and not _NAMES.search(now[x])
  ]
  now = {x: now[x] for x in plain}
  name = _changed({x: then[x] for x in plain}, now)
  return None if name is None else _difference(name, then, now)


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
  names = [
      name for name in sorted({**then, **now})
      if not _is_same(then.get(name), now.get(name))
  ]
  # Users set macros; other bindings stand in files.
  return next(filter(str.isidentifier, names), next(iter(names), None))


def _difference(
    name: str, then: Mapping[str, str], now: Mapping[str, str]
) -> str:
  was, is_now = (x.get(name, 'not set') for x in (then, now))
  return f'{name} was {was}, and now it is {is_now}'


def _is_same(one: str | None, other: str | None) -> bool:
  """Whether two values are, of which 8 and 8.0 are one."""
  if one is None or other is None or one == other:
    return one == other
  with contextlib.suppress(ValueError):
    return float(one) == float(other)
  return False
