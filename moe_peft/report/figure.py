# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns a matplotlib figure into SVG that follows the colors of the page.

Matplotlib draws with placeholder colors; in the SVG each becomes a CSS
variable of `style.CSS`, so one drawing serves light, dark and print. Only
the object interface is used: there is no pyplot state to leak.
"""

import contextlib
import hashlib
import html
import io
import math
import re

INK = '#010203'
MUTED = '#010204'
GRID = '#010205'
SURFACE = '#010206'
_VARIABLES = {
    INK: 'var(--ink)',
    MUTED: 'var(--muted)',
    GRID: 'var(--grid)',
    SURFACE: 'var(--surface)',
}
NUM_COLOURS = 7
_SERIES = [f'#0103{i:02x}' for i in range(NUM_COLOURS)]
# Runs beyond the seventh repeat the colors with another dash.
_DASHES = ((), (6, 2.5), (1.5, 2))


def series_style(index: int) -> tuple[str, tuple[float, ...]]:
  """Placeholder color and dash pattern of the run at `index`."""
  dash = _DASHES[index // NUM_COLOURS % len(_DASHES)]
  return _SERIES[index % NUM_COLOURS], dash


def series_marker(index: int) -> str:
  """The mark of the run at `index`: it changes where the dash does."""
  return 'osD'[index // NUM_COLOURS % 3]


def series_variable(index: int) -> str:
  """The CSS color of the run at `index`."""
  return f'var(--series-{index % NUM_COLOURS})'


@contextlib.contextmanager
def theme():
  """Settings of every figure; draw and export inside this context."""
  import matplotlib

  with matplotlib.rc_context({
      'svg.fonttype': 'none',
      'svg.hashsalt': 'moe_peft',  # the same figure, the same ids
      'text.parse_math': False,
      'font.family': 'DejaVu Sans',
      'font.size': 11,
      'text.color': INK,
      'axes.edgecolor': MUTED,
      'axes.labelcolor': MUTED,
      'axes.linewidth': 0.8,
      'axes.spines.top': False,
      'axes.spines.right': False,
      'axes.grid': True,
      'axes.axisbelow': True,
      'grid.color': GRID,
      'grid.linewidth': 0.8,
      'xtick.color': MUTED,
      'ytick.color': MUTED,
      'xtick.labelsize': 11,
      'ytick.labelsize': 11,
      'image.interpolation': 'nearest',
      'path.simplify': True,
  }):
    yield


def new(width: float, height: float):
  """An empty figure of `width` by `height` CSS pixels."""
  from matplotlib import figure

  return figure.Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(fig, left: float, top: float, width: float, height: float):
  """Axes at a place given in pixels from the top left corner."""
  full_width, full_height = fig.get_size_inches() * 72
  return fig.add_axes((
      left / full_width,
      1 - (top + height) / full_height,
      width / full_width,
      height / full_height,
  ))


def to_svg(fig, description: str, scale: float = 0.0) -> str:
  """Inline SVG without ids, names or addresses that clash in one page.

  Args:
    fig: a figure drawn inside `theme`.
    description: what a screen reader says.
    scale: 0 lets the drawing fill its container; otherwise it is never
      shown smaller than `scale` times its size, and the container scrolls.
  """
  width, height = fig.get_size_inches() * 72
  buffer = io.StringIO()
  # Twice the size, for the images inside (heat maps) on dense screens.
  fig.savefig(
      buffer, format='svg', dpi=144, transparent=True, metadata={'Date': None}
  )
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  body = svg[svg.index('>') + 1 :]
  content = (description + body).encode('utf-8', 'replace')
  prefix = 'f' + hashlib.sha256(content).hexdigest()[:8]
  body = re.sub(r'\bid="', f'id="{prefix}', body)
  body = re.sub(r'(xlink:)?href="#', f'href="#{prefix}', body)
  body = body.replace('xlink:href=', 'href=')
  body = body.replace('url(#', f'url(#{prefix}')
  for index, color in enumerate(_SERIES):
    body = body.replace(color, series_variable(index))
  for color, variable in _VARIABLES.items():
    body = body.replace(color, variable)
  style = f'min-width:{scale * width:.0f}px;' if scale else ''
  return (
      f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
      f' aria-label="{html.escape(description)}"'
      f' style="{style}max-width:{1.25 * width:.0f}px">{body}'
  )


def label(text: str, limit: int = 24) -> str:
  """A name that fits: unprintable characters and the middle are left out."""
  text = ''.join(c if c.isprintable() else '?' for c in text)
  if len(text) <= limit:
    return text
  tail = limit // 2
  return text[: limit - tail - 1] + '…' + text[-tail:]


def compact(value: float, _position=None) -> str:
  """A short tick label: 12000 -> 12k, 0.0005 -> 0.0005, 1e-05."""
  if not math.isfinite(value):
    return ''
  for size, suffix in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= size:
      return f'{value / (1e3 if suffix == "k" else size):.4g}{suffix}'
  return f'{value:.4g}'
