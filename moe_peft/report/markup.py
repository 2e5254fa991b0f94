# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small pieces of HTML; everything that comes from a run is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
import html
import math

from moe_peft.report import figure

NOTHING = '<span class="muted">–</span>'


def escape(text: object) -> str:
  """Text for HTML; characters that no page may hold become '?'."""
  text = ''.join(
      c if c.isprintable() or c in '\n\t' else '?' for c in str(text)
  )
  return html.escape(text)


def number(value: float, sign: bool = False) -> str:
  """A score: two decimals, below 1 three, below 0.001 two digits."""
  if not math.isfinite(value):
    return NOTHING
  plus = '+' if sign else ''
  size = abs(value)
  digits = '.2f' if size >= 1 else '.3f' if size >= 1e-3 or not size else '.1e'
  text = format(value, plus + digits)
  return text.replace('-', '−') if value < 0 else text


def count(value: object) -> str:
  """12345678 -> 12,345,678; anything but a number as it is."""
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'.replace(',', '&#8239;')  # narrow no-break space
  return NOTHING if value is None else escape(value)


def duration(value: object) -> str:
  """Seconds as h, min, s."""
  if not isinstance(value, (int, float)) or not 0 <= value < 1e9:
    return NOTHING
  seconds = round(value)
  hours, minutes = seconds // 3600, seconds % 3600 // 60
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {seconds % 60} s' if minutes else f'{seconds} s'


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    classes: Iterable[str] | None = None,
    wrapped: Sequence[int] = (),
) -> str:
  """A table that scrolls by itself; cells are HTML, the first is the name.

  Args:
    header: one cell for each column.
    rows: as many cells each.
    classes: a class for each row, '' for none.
    wrapped: columns of running text.
  """
  rows = list(rows)
  classes = list(classes) if classes is not None else [''] * len(rows)

  def cell(tag, index, content):
    css = ' class="text wrap"' if index in wrapped else ''
    scope = '' if tag == 'td' else ' scope="row"'
    return f'<{tag}{scope}{css}>{content}</{tag}>'

  head = ''.join(
      f'<th scope="col"{" class=text" if i in wrapped else ""}>{h}</th>'
      for i, h in enumerate(header)
  )
  body = ''.join(
      f'<tr{f" class={css}" if css else ""}>'
      + ''.join(cell('td' if i else 'th', i, c) for i, c in enumerate(row))
      + '</tr>\n'
      for row, css in zip(rows, classes, strict=True)
  )
  return (
      f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
      f'<tbody>{body}</tbody></table></div>'
  )


def facts(pairs: Mapping[str, str]) -> str:
  """Tiles of a name and a value; the values are HTML."""
  tiles = ''.join(
      f'<div><dt>{escape(k)}</dt><dd>{v}</dd></div>' for k, v in pairs.items()
  )
  return f'<dl class="facts">{tiles}</dl>'


def panel(title: str, note: str, svg: str) -> str:
  """A figure with a title and a line below it; both are plain text."""
  note = f'<span>{escape(note)}</span>' if note else ''
  return (
      f'<figure><figcaption>{escape(title)}{note}</figcaption>{svg}</figure>'
  )


def legend(names: Sequence[str], markers: str = '') -> str:
  """Which color is which run; nothing for a single run."""
  if len(names) < 2 and not markers:
    return ''
  items = [
      f'<li>{_swatch(i)}{escape(name)}</li>' for i, name in enumerate(names)
  ]
  return f'<ul class="legend">{"".join(items)}{markers}</ul>'


def _swatch(index: int) -> str:
  dash = ','.join(f'{2 * d:g}' for d in figure.series_style(index)[1])
  return (
      '<svg viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30"'
      f' y2="5" stroke="{figure.series_variable(index)}" stroke-width="3"'
      f'{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}/></svg>'
  )


def marker(kind: str, text: str) -> str:
  """A legend entry for the ring of the base or the dot of the adapted."""
  fill, stroke = {
      'ring': ('var(--surface)', 'var(--muted)'),
      'dot': ('var(--series-0)', 'var(--series-0)'),
  }[kind]
  return (
      '<li><svg viewBox="0 0 30 10" aria-hidden="true"><circle cx="15" cy="5"'
      f' r="4" fill="{fill}" stroke="{stroke}" stroke-width="1.6"/></svg>'
      f'{escape(text)}</li>'
  )
