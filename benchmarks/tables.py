# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a table is, and how it is printed and kept."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line decides.

  Attributes:
    quick: Small shapes, few cases and rounds.
    threads: CPU threads, for PyTorch's peers too.
    peer_python: Interpreter of the peers' environment, or None.
    minutes: Time that the table of a card takes at most.
    folder: Where tables are written.
    experiment: Gin file whose base `quantized` compares.
  """

  quick: bool = False
  threads: int = 1
  peer_python: str | None = None
  minutes: float = 8.0
  folder: Path = Path('runs/benchmarks')
  experiment: str = 'configs/quickstart.gin'


@dataclasses.dataclass(frozen=True)
class Column:
  """One column.

  Attributes:
    key: Key of the rows.
    title: Head of the column, with the unit.
    spec: Format of the numbers.
    scale: Numbers are multiplied with it.
  """

  key: str
  title: str
  spec: str = '.2f'
  scale: float = 1.0

  def cell(self, row: Row) -> str:
    value = row.get(self.key)
    if value is None or isinstance(value, str):
      return value or ''
    return format(self.scale * value, self.spec)


# Columns that mean the same in all tables.
MILLISECONDS = Column('seconds', 'ms, median', ',.1f', 1e3)
FASTEST = Column('fastest', 'fastest', ',.1f', 1e3)
TEMP = Column('temp_mib', 'temp MiB', ',.0f')
PEAK = Column('peak_mib', 'peak MiB', ',.0f')
GFLOP = Column('gflop', 'GFLOP', ',.2f')
RATE = Column('gflop_per_second', 'GFLOP/s', ',.0f')
# What is measured is float32, as far as the backend's matrix products are.
SHARE = Column('share_of_peak', '% of bfloat16 peak', '.1f', 100)
PARAMETERS = Column('parameters', 'trained', ',.0f')


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of results.

  Attributes:
    name: What it is called in files and plots.
    title: What was measured, with all sizes.
    columns: What is printed; `case` is always the first one.
    rows: Everything that was measured, for JSON.
    notes: Sentences below it.
  """

  name: str
  title: str
  columns: Sequence[Column]
  rows: Sequence[Row]
  notes: Sequence[str] = ()

  def markdown(self) -> str:
    """The table as text; a column without any value is left out."""
    columns = [
        c for c in self.columns if any(r.get(c.key) is not None for r in
                                       self.rows)
    ]
    lines = [
        '| case | ' + ' | '.join(c.title for c in columns) + ' |',
        '|---|' + '--:|' * len(columns),
    ]
    for row in self.rows:
      cells = ' | '.join(column.cell(row) for column in columns)
      lines.append(f'| {row["case"]} | {cells} |')
    notes = ''.join(f'\n{note}' for note in self.notes)
    return f'{self.title}\n\n' + '\n'.join(lines) + (notes and f'\n{notes}')


def ratios(rows: Sequence[dict[str, Any]], key: str, case: str, of: str):
  """Adds to each row `key`: its value `of` over that of `case`."""
  reference = next(row[of] for row in rows if row['case'] == case)
  for row in rows:
    if row.get(of) is not None:
      row[key] = row[of] / reference


def save(tables: Sequence[Table], path: Path) -> None:
  """Writes tables as JSON; columns are left to the printer."""
  content = [
      {'name': t.name, 'title': t.title, 'rows': t.rows, 'notes': t.notes}
      for t in tables
  ]
  path.write_text(json.dumps(content, indent=1) + '\n')
