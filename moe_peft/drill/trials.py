# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trials: a fault, a kill at a random moment, and the next process goes on.

Five trials hurt one run, which is then left alone: what it leaves behind must
be what an uninterrupted run leaves, bit for bit.
"""

import collections
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import random
import shutil
import signal
import time
from typing import Any

import rich.console

from moe_peft import atomic
from moe_peft import errors
from moe_peft import signals
from moe_peft.drill import faults
from moe_peft.drill import moments
from moe_peft.drill import outcome
from moe_peft.drill import small_run

RECORDS, TABLE = 'trials.jsonl', 'table.md'
_TRIALS_A_RUN = 5
# Every second trial has one of the faults, in turn.
_FAULTS = [x for x in faults.FAULTS if x != 'nothing']

console = rich.console.Console(stderr=True, highlight=False)


def run(num_trials: int, seed: int, out: Path, work: Path) -> bool:
  """Runs the trials that `out` does not hold yet, and prints a table.

  Args:
    num_trials: How many.
    seed: Decides what happens in them.
    out: Where the records are.
    work: Where the runs are: the disk that is tried.

  Returns:
    Whether nothing was lost.

  Raises:
    errors.UserError: `out` holds trials of another seed.
  """
  out.mkdir(parents=True, exist_ok=True)
  records = _read(out / RECORDS, seed)
  _write(out / RECORDS, records)
  small_run.write_leaf(work)
  reference = small_run.SmallRun(work, 'reference')
  shutil.rmtree(reference.folder, ignore_errors=True)
  durations = moments.measure(reference)
  expected = outcome.read(reference.folder, small_run.STEPS)
  console.print(f'A run takes {sum(durations.values()):.0f} seconds.')
  numbers = range(num_trials)
  for start in range(0, num_trials, _TRIALS_A_RUN):
    group = list(numbers[start : start + _TRIALS_A_RUN])
    if any(record['trial'] == group[-1] for record in records):
      continue
    rng = random.Random(f'{seed}/{start}')
    shutil.rmtree(work / f'run{start}', ignore_errors=True)
    victim = _Victim(work, f'run{start}', durations, expected)
    for number in group:
      record = {'seed': seed, 'trial': number, **victim.trial(number, rng)}
      if number == group[-1]:
        victim.finish(record)
      # Whoever reads the record knows no folder of this machine.
      record['lost'] = [x.replace(f'{work}/', '') for x in record['lost']]
      records.append(record)
      with (out / RECORDS).open('a', encoding='utf-8') as file:
        file.write(json.dumps(record) + '\n')
      atomic.write(out / TABLE, table(records))
      _show(record)
  records = [x for x in records if x['trial'] < num_trials]
  atomic.write(out / TABLE, table(records))
  console.print(table(records))
  return not any(record['lost'] for record in records)


class _Victim:
  """The run that is hurt; a new one where it has reached its end."""

  def __init__(self, work: Path, name: str, durations: moments.Durations,
               expected: Mapping[str, Any]):
    self._run = small_run.SmallRun(work, name)
    self._durations, self._expected = durations, expected

  def trial(self, number: int, rng: random.Random) -> dict[str, Any]:
    """A fault, and a kill."""
    run, start = self._run, time.monotonic()
    fault = _FAULTS[number // 2 % len(_FAULTS)] if number % 2 else 'nothing'
    what, lost = faults.FAULTS[fault](run, rng)
    saved = run.steps_saved()
    moment = moments.draw(run, self._durations, rng)
    sent = rng.choice(moments.SIGNALS)
    run.start()
    name = moment.name if moments.wait(run, moment) else 'none: it had ended'
    status = run.end(sent)
    lost += faults.check_words(run) + _check_status(run, sent, status)
    # A damaged checkpoint is not counted: it is moved aside.
    kept = saved[1:] if fault in faults.DAMAGE else saved
    if max(kept, default=0) > max(run.steps_saved(), default=0):
      lost.append(f'the checkpoint of step {kept[0]}')
    if status == 0:
      lost += self._compare()
    return {
        'fault': fault, 'what': what, 'signal': signal.Signals(sent).name,
        'moment': name, 'status': status,
        'step': max(run.steps_saved(), default=0),
        'seconds': round(time.monotonic() - start, 1), 'lost': lost,
    }

  def finish(self, record: dict[str, Any]) -> None:
    """Lets the run go to its end, and adds what it has lost to a record."""
    if not self._run.folder.exists():  # It has just been compared.
      return
    self._run.start()
    status = self._run.end()
    record['lost'] += faults.check_words(self._run)
    if status == 0:
      record['lost'] += self._compare()
    else:
      record['lost'].append(f'status {status}: {self._run.said()[-300:]}')

  def _compare(self) -> list[str]:
    """What differs from the run that nothing has happened to."""
    found = outcome.read(self._run.folder, small_run.STEPS)
    lost = outcome.differences(found, self._expected)
    folder = self._run.folder
    if not lost:
      shutil.rmtree(folder)
    else:  # It stays to be looked at, and the next run is another one.
      folder.rename(folder.with_name(f'{folder.name}_lost_{time.time_ns()}'))
    return lost


def _check_status(run, sent: int, status: int | None) -> list[str]:
  """What is wrong with how a process has ended."""
  allowed = {0, -sent} if sent == signal.SIGKILL else {0, signals.status(sent)}
  if run.is_finished():
    allowed.add(-sent)  # Python hears of no signal while it ends.
  if status in allowed:
    return []
  return [f'status {status} after {signal.Signals(sent).name}: '
          f'{run.said()[-300:]}']


def _read(file: Path, seed: int) -> list[dict[str, Any]]:
  """The records of whole runs; a run that has begun begins again."""
  if not file.is_file():
    return []
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  if others := {row['seed'] for row in rows} - {seed}:
    raise errors.UserError(
        f'{file} holds trials of seed {min(others)}, not of {seed}.', '--seed',
        'Name that seed, or another folder with --out.',
    )
  return rows[: len(rows) // _TRIALS_A_RUN * _TRIALS_A_RUN]


def _write(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
  atomic.write(file, ''.join(json.dumps(x) + '\n' for x in records))


def _show(record: Mapping[str, Any]) -> None:
  end = 'nothing lost' if not record['lost'] else f'LOST {record["lost"]}'
  console.print(
      f'{record["trial"]:4d}  {record["fault"]} {record["what"]}; '
      f'{record["signal"]} at: {record["moment"]}; {end}', markup=False,
      soft_wrap=True,
  )


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """Trials and losses by moment and by fault, as Markdown."""
  rows = collections.defaultdict(lambda: [0, 0])
  for record in records:
    keys = [f'killed: {record["moment"]}']
    if record['what']:  # There may have been no checkpoint to damage.
      keys.append(record['fault'])
    for key in keys:
      rows[key][0] += 1
      rows[key][1] += bool(record['lost'])
  lines = ['| what happened | trials | something lost |', '|---|---|---|']
  lines += [f'| {key} | {n} | {lost} |' for key, (n, lost) in sorted(
      rows.items())]
  lost = sum(bool(record['lost']) for record in records)
  lines.append(f'| all | {len(records)} | {lost} |')
  return '\n'.join(lines) + '\n'
