# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a compiled step needs, in the header of the gin file it was made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import textwrap
from typing import Any

from moe_peft import atomic
from moe_peft import errors

_NOT_RUN = '# Hardware and hours: not run.'
_NOTE = '# Compiled for '
_CONTINUED = '#   '


def note(report: Mapping[str, Any]) -> list[str]:
  """Lines of a header: memory, and the least time of a step.

  Args:
    report: As `compiled.make_report` makes it for a slice of TPUs, perhaps
      with the `bindings` of the command line.
  """
  if 'error' in report:
    found = 'too large'
  else:
    memory, roofline = report['memory'], report['roofline']
    found = (
        f'{memory["total"] / 2**30:.2f} of {memory["limit"] / 2**30:.2f} GiB a '
        f'device, at least {max(roofline["seconds"].values()):.3f} s a step '
        f'({roofline["bound"]})'
    )
  mesh = ' x '.join(f'{name} {n}' for name, n in report['mesh'].items())
  changed = list(report.get('bindings', ()))
  if report.get('execution', 'configured') != 'configured':
    changed.append(f'execution {report["execution"]}')
  changed = ', '.join(changed)
  changed = changed and f' with {changed}'
  return textwrap.wrap(
      f'{_begin(report)} {mesh}{changed}, not run: {found}.',
      width=80, subsequent_indent=_CONTINUED, break_on_hyphens=False,
  )


def write(file: Path, reports: Sequence[Mapping[str, Any]]) -> None:
  """Writes a note of each report into the comment that a gin file begins with.

  It takes the place of an earlier one for the same slice, or of the line that
  says that nothing is known.

  Args:
    file: The gin file.
    reports: Reports of steps of it.

  Raises:
    errors.UserError: If there is no such file.
  """
  with errors.refused('Its header cannot be written.', file):
    text = file.read_text(encoding='utf-8')
  lines = text.splitlines()
  size = next(
      (i for i, x in enumerate(lines) if not x.startswith('#')), len(lines)
  )
  header, rest = lines[:size], lines[size:]
  for report in reports:
    header = _with_note(header, report)
  atomic.write(file, '\n'.join([*header, *rest]) + '\n')


def _begin(report: Mapping[str, Any]) -> str:
  return f'{_NOTE}{report["topology"]},'


def _with_note(header: list[str], report: Mapping[str, Any]) -> list[str]:
  last = len(header)
  for start, text in enumerate(header):
    if not text.startswith((_NOTE, _NOT_RUN)):
      continue
    end = start + 1
    while end < len(header) and header[end].startswith(_CONTINUED):
      end += 1
    if text.startswith((_begin(report), _NOT_RUN)):
      return header[:start] + note(report) + header[end:]
    last = end  # A new one comes after the notes of other slices.
  return header[:last] + note(report) + header[last:]
