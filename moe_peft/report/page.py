# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about one or several runs."""

from collections.abc import Sequence
import math
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft.report import experts
from moe_peft.report import figure
from moe_peft.report import heatmaps
from moe_peft.report import methods
from moe_peft.report import plots
from moe_peft.report import routing
from moe_peft.report import scores
from moe_peft.report import tokens
from moe_peft.routers import statistics
from moe_peft.runs import run as run_lib

# With more runs the lines of a panel can no longer be told apart.
MAX_RUNS = 20
_TEMPLATES = Path(__file__).parent / 'templates'
_NOTHING = markupsafe.Markup('<span class="muted">–</span>')


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
  """Writes the page; an older page is replaced only by a whole new one.

  Args:
    run_dirs: 1 to 20 run directories (MODEL_DIR).
    out: The HTML file to write.

  Returns:
    `out`.

  Raises:
    errors.UserError: A run cannot be read, there are too many, or `out` cannot
      be written.
  """
  if len(run_dirs) > MAX_RUNS:
    raise errors.UserError(
        f'{len(run_dirs)} runs are too many for one page.', 'RUN',
        f'Give at most {MAX_RUNS}.',
    )
  text = page(run_lib.read_all(run_dirs))
  try:
    atomic.write(out, text.encode('utf-8', 'replace'))
  except OSError as e:
    raise errors.UserError(
        f'The report {out} cannot be written ({e.strerror}).', '--out',
        'Name a file in a folder that exists and has room.',
    ) from e
  return Path(out)


def page(runs: Sequence[run_lib.Run]) -> str:
  """The whole page as text."""
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(_TEMPLATES),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      finalize=_printable,
      trim_blocks=True,
      lstrip_blocks=True,
  )
  environment.filters |= {
      'number': number, 'signed': signed, 'change': change, 'count': count,
      'duration': duration,
  }
  drifts = [routing.Drift(r.snapshots) if r.snapshots else None for r in runs]
  return environment.get_template('page.html.j2').render(
      runs=runs, drifts=drifts, experts=experts, figure=figure,
      heatmaps=heatmaps, math=math, methods=methods, np=np, plots=plots,
      routing=routing, scores=scores, statistics=statistics, tokens=tokens,
      share=share, nothing=_NOTHING,
  )


def _printable(value: Any) -> Any:
  """What templates print: characters that no page may hold become '?'."""
  if value is None or value == '':
    return value if value == '' else _NOTHING
  if isinstance(value, markupsafe.Markup) or not isinstance(value, str):
    return value
  return ''.join(c if c.isprintable() or c in '\n\t' else '?' for c in value)


def number(value: float, plus: str = '') -> str | None:
  """A score: two decimals, below 1 three, below 0.001 two digits."""
  if not math.isfinite(value):
    return None
  size = abs(value)
  digits = '.2f' if size >= 1 else '.3f' if size >= 1e-3 or not size else '.1e'
  text = format(value, plus + digits)
  return text.replace('-', '−') if value < 0 else text


def signed(value: float) -> str | None:
  """A score with its sign; None where it is not finite."""
  return number(value, '+')


def change(value: float) -> str:
  """The change of a loss."""
  return f'{value:+.3f}'.replace('-', '−')


def count(value: int | None) -> markupsafe.Markup | None:
  """12345678 -> 12 345 678, with narrow spaces that do not break."""
  if value is None:
    return None
  return markupsafe.Markup(f'{value:,}'.replace(',', '&#8239;'))


def duration(value: float | None) -> str | None:
  """Seconds as h, min, s."""
  if value is None or not 0 <= value < 1e9:
    return None
  seconds = round(value)
  hours, minutes = seconds // 3600, seconds % 3600 // 60
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {seconds % 60} s' if minutes else f'{seconds} s'


def share(run: run_lib.Run) -> str:
  """What share of the parameters trains, in percent."""
  trainable, total = run.info.num_params_trainable, run.info.num_params_total
  return f'{100 * trainable / total:.3g} %' if trainable and total else ''
