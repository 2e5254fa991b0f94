# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One page of the results of studies: every number of it comes from a file."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
import statistics

from moe_peft import errors
from moe_peft.evaluation import spread
from moe_peft.study import claims
from moe_peft.study import intervals
from moe_peft.study import records
from moe_peft.study import run_rows
from moe_peft.study import significance
from moe_peft.study import tables
from moe_peft.study import verdicts


def page(
    results: Path, reference: str, without: Sequence[str], relative_to: Path
) -> str:
  """The page, in Markdown.

  Args:
    results: A folder with a folder for each study, as `study` writes them, or
      for several. Tables of claims are taken as they are.
    reference: The method with which the others are compared, where a study
      has it; elsewhere the first one.
    without: Tasks that a second mean leaves out.
    relative_to: Folder of the page, for the paths of its pictures.

  Raises:
    errors.UserError: If there is no study.
  """
  parts = []
  study = functools.partial(
      _study, results, reference=reference, without=without,
      relative_to=relative_to,
  )
  for folder in sorted(path for path in results.glob('*') if path.is_dir()):
    several = sorted(file.parent for file in folder.glob('*/results.json'))
    if (folder / 'results.json').exists():
      parts.append(study(folder))
    elif several and (folder / verdicts.FILE).exists():
      table = (folder / verdicts.FILE).read_text('utf-8')
      parts.append(f'## {folder.name}\n\n{table}')
    else:
      parts += map(study, several)
  parts = [part for part in parts if part]
  if not parts:
    raise errors.UserError('The folder holds no results of a study.', results)
  left_out = f' or without {", ".join(without)}' if without else ''
  flags = ''.join(f' --without {task}' for task in without)
  return (
      '# Evidence\n\n'
      f'Made from `{results.name}/` by `python -m moe_peft evidence '
      f'{results.name}{flags} --reference {reference} --out FILE`.\n\n'
      'Percent on the split that was scored, mean and standard deviation over '
      f'seeds, of all tasks{left_out}. Differences are to the reference, with '
      'their 95 % interval (of seeds and questions together where a study says '
      'which were right, else Welch), and none is corrected for the number of '
      'rows. [Studies](studies.md) says how to read them.\n\n'
      + '\n'.join(parts)
  )


def _study(results, folder, reference, without, relative_to) -> str:
  """The section of a study; empty if it has no row yet."""
  rows = tables.compared(records.Records(folder).rows)
  if not rows:
    return ''
  name = folder.relative_to(results).as_posix()
  text = f'## {name}\n\n'
  if (picture := folder / 'plot.png').exists():
    path = os.path.relpath(picture, relative_to)
    text += f'![Every seed of {name}, by mean and by task]({path})\n\n'
  text += _table(rows, reference, without)
  if controls := tables.controls(rows, without):
    left_out = f' without {", ".join(without)}' if without else ''
    text += f'\nMeans{left_out} with the routing replaced:\n\n{controls}'
  if (claim := folder / verdicts.SINGLE).exists():
    text += f'\n{claim.read_text("utf-8")}'
  return text


def _table(rows, reference, without) -> str:
  by_name = {}
  for row in rows:
    by_name.setdefault(row['name'], []).append(row)
  reference = reference if reference in by_name else next(iter(by_name))
  means, counted = [('mean', ())], set(run_rows.counted(rows[0]))
  if counted & set(without) and counted - set(without):
    means.append((f'without {", ".join(without)}', without))
  lines = [
      ['method', 'trainable', 'chosen', 'seeds',
       *(cell for name, _ in means for cell in (name, f'- {reference}'))],
      ['---', '--:', '---', '--:', *['--:'] * 2 * len(means)],
  ]
  score = claims.mean(())
  for name in sorted(
      by_name, key=lambda n: -sum(map(score, by_name[n])) / len(by_name[n])
  ):
    runs = by_name[name]
    lines.append([
        name, f'{runs[0]["trainable"]:,}',
        records.text(runs[0].get('tuned', {})), str(len(runs)),
        *(
            cell
            for _, left_out in means
            for cell in _cells(
                runs, by_name[reference], left_out, name == reference
            )
        ),
    ])
  return tables.markdown(lines)


def _cells(runs, reference, left_out, is_reference) -> list[str]:
  """A mean, and its difference to the reference's."""
  scores, others = (
      list(map(claims.mean(left_out), arm)) for arm in (runs, reference)
  )
  if is_reference:
    return [tables.cell(scores), '']
  if min(len(scores), len(others)) < 2:
    gap = statistics.fmean(scores) - statistics.fmean(others)
    return [tables.cell(scores), f'{gap:+.1f}']
  d = significance.difference(scores, others, spread.LEVEL)
  low, high = intervals.difference(*(
      intervals.scores(arm, left_out) for arm in (runs, reference)
  )) or (d.low, d.high)
  return [tables.cell(scores), f'{d.value:+.1f} ({low:+.1f} to {high:+.1f})']
