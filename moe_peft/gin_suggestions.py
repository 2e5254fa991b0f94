# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The names that were meant where a gin file or a flag misspells one."""

from collections.abc import Iterable
import difflib
import inspect
import os
import re
import sys


def nearest(name: str, names: Iterable[str]) -> str:
  """Asks whether one of the names was meant; empty if none is near."""
  near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
  return f'Did you mean {" or ".join(near)}?' if near else ''


def similar(name: str, names: Iterable[str]) -> str:
  """The one of the names that this one is much like, or ''."""
  near = difflib.get_close_matches(name.upper(), list(names), n=1, cutoff=0.85)
  return ''.join(near)


def misspelt(name: str, names: Iterable[str]) -> str:
  """The one of the names that this one surely was meant to be, or ''."""
  return next((x for x in names if _is_slip(name.upper(), x)), '')


def _is_slip(name: str, meant: str) -> bool:
  """Whether names differ by a letter, or by two neighbours that changed places.

  A short name is soon another word (BANK is no RANK), and neither a plural nor
  a number is a slip.
  """
  if name == meant:
    return True
  start = len(os.path.commonprefix((name, meant)))
  rest, of_meant = name[start:], meant[start:]
  end = len(os.path.commonprefix((rest[::-1], of_meant[::-1])))
  after = rest[len(rest) - end :]
  rest, of_meant = (x[: len(x) - end] for x in (rest, of_meant))
  if len(name) < 6 or not (rest + of_meant).isalpha():
    return False
  if rest + of_meant == 'S' and after[:1] in ('', '_'):
    return False
  return max(len(rest), len(of_meant)) == 1 or (
      len(rest) == 2 and rest == of_meant[::-1]
  )


# T5X's functions, which its gin files find in the script that runs.
_SCRIPTS = {'train': 'train', 'evaluate': 'eval', 'infer': 'infer'}


def _of_module(module: str, attribute: str) -> str:
  """The same where a module has no such attribute."""
  is_script = module.startswith(('t5x.', 'moe_peft.')) or module == '__main__'
  if is_script and attribute in _SCRIPTS:
    return f'Run it with python -m t5x.{_SCRIPTS[attribute]}.'
  # What runs is under another name there.
  return nearest(attribute, dir(sys.modules.get(module)))


def for_message(message: str, files: Iterable[str]) -> str:
  """What may have been meant, by an error message of gin.

  Args:
    message: What gin says.
    files: Names of the gin files that ship with the package.

  Returns:
    A remedy; empty where gin says something else.
  """
  import gin

  match = re.search(r"<module '([\w.]+)'.*has no attribute (\w+)", message)
  if match:
    return _of_module(*match.groups())
  match = re.search(
      r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'",
      message,
  )
  if match:
    wrapped = gin.config._REGISTRY.get_match(match[1]).wrapped
    return nearest(match[2], inspect.signature(wrapped).parameters)
  match = re.search(r'Unable to open file: (\S+)\.', message)
  if match:
    return nearest(match[1], files)
  match = re.search(r"'(\w+)' was not provided by an import", message)
  if match:
    return f'Import {match[1]} in the same file.'
  if 'Failed to parse token' in message:
    return 'Put quotes around a text, and in a shell others around those.'
  match = re.search(r"No configurable matching '([\w./]+)'", message)
  if match:
    return nearest(match[1], gin.config._REGISTRY._selector_map)
  return ''
