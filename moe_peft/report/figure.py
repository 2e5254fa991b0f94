# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns a matplotlib figure into SVG that follows the colors of the page.

Matplotlib draws with placeholder colors; in the SVG each becomes a CSS
variable of `style.css`, so one drawing serves light, dark and print. Only the
object interface is used: there is no pyplot state to leak.
"""

import contextlib
import hashlib
import io
import math
import re

import markupsafe

INK, MUTED, GRID, SURFACE = '#010203', '#010204', '#010205', '#010206'
NUM_COLORS = 7
_SERIES = [f'#0103{i:02x}' for i in range(NUM_COLORS)]
_VARIABLES = {
    INK: 'ink', MUTED: 'muted', GRID: 'grid', SURFACE: 'surface',
    **{color: f'series-{i}' for i, color in enumerate(_SERIES)},
}
# Runs beyond the seventh repeat the colors with another dash and marker.
_DASHES = ((), (6, 2.5), (1.5, 2))
_STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'moe_peft',  # The same figure gets the same ids.
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
}


def series_style(index: int) -> tuple[str, tuple[float, ...], str]:
  """Placeholder color, dash pattern and marker of the run at `index`."""
  kind = index // NUM_COLORS % len(_DASHES)
  return _SERIES[index % NUM_COLORS], _DASHES[kind], 'osD'[kind]


@contextlib.contextmanager
def new(width: float, height: float):
  """A figure of `width` by `height` CSS pixels, to draw and export within."""
  import matplotlib  # Commands that fail early need not wait for it.
  from matplotlib import figure

  with matplotlib.rc_context(_STYLE):
    yield figure.Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(fig, left: float, top: float, width: float, height: float):
  """Axes at a place given in pixels from the top left corner."""
  full_width, full_height = fig.get_size_inches() * 72
  return fig.add_axes((
      left / full_width,
      1 - (top + height) / full_height,
      width / full_width,
      height / full_height,
  ))


def to_svg(fig, description: str, scale: float = 0.0) -> markupsafe.Markup:
  """Inline SVG without ids, names or addresses that clash in one page.

  Args:
    fig: A figure of `new`.
    description: What a screen reader says.
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
  body = svg[svg.index('>', svg.index('<svg')) + 1 :]
  body = re.sub(r'<metadata>.*?</metadata>', '', body, flags=re.DOTALL)
  content = (description + body).encode('utf-8', 'replace')
  prefix = 'f' + hashlib.sha256(content).hexdigest()[:8]
  body = re.sub(r'\b(id="|(?:xlink:)?href="#|url\(#)', rf'\1{prefix}', body)
  body = body.replace('xlink:href=', 'href=')
  for color, variable in _VARIABLES.items():
    body = body.replace(color, f'var(--{variable})')
  style = f'min-width:{scale * width:.0f}px;' if scale else ''
  return markupsafe.Markup(
      f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
      f' aria-label="{markupsafe.escape(description)}"'
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
  for size, unit, suffix in ((1e9, 1e9, 'G'), (1e6, 1e6, 'M'), (1e4, 1e3, 'k')):
    if abs(value) >= size:
      return f'{value / unit:.4g}{suffix}'
  return f'{value:.4g}'
