# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz`: reads mutated files of every format.

A reader returns, or raises `errors.UserError`. Anything else is a fault:
another exception, the end of the process, more than 5 s of CPU or 1 GB, a
message of many lines, a file written or changed elsewhere, anything that is
run.

What was found is appended to OUT/fuzz.jsonl, a line for some inputs; a second
call goes on after them. The same number of an input is the same input always.
"""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import threading
from typing import Any, NamedTuple

from moe_peft import errors
from moe_peft.cli import flags
from tests.fuzz import readers

# A process that has said nothing for so long, imports included, hangs.
_SILENCE_SECONDS = 600
_CHUNK = 1000
FILE = 'fuzz.jsonl'


def main(argv: Sequence[str]) -> int:
  """Parses the command line; the status is 1 if there were faults."""
  parser = flags.make_parser(
      'tests.fuzz', 'Reads mutated files of every format.',
      '--inputs 100 --reader gguf',
  )
  names = list(readers.READERS)
  parser.add_argument(
      '--inputs', type=flags.whole_number(1), default=10_000,
      help='inputs of each reader (default: 10000)',
  )
  parser.add_argument(
      '--reader', action='append', choices=names, metavar='NAME',
      help=f'may be repeated (default: all): {", ".join(names)}',
  )
  parser.add_argument(
      '--out', type=Path, default=Path('runs/fuzz'),
      help='folder of fuzz.jsonl (default: runs/fuzz)',
  )
  args = parser.parse_args(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  file = args.out / FILE
  done = {Job(*(x[y] for y in Job._fields)) for x in _lines(file)}
  waiting = [
      x for x in jobs(args.reader or names, args.inputs) if x not in done
  ]
  found = []
  for told in run(waiting):
    found.append(told)
    if 'fault' in told:
      print(told, flush=True)
    if told['input'] == waiting[0].stop - 1:
      with file.open('a', encoding='utf-8') as stream:
        stream.write(json.dumps(summary(waiting.pop(0), found)) + '\n')
      found = []
  print(table(_lines(file)))
  return 1 if any(x['faults'] for x in _lines(file)) else 0


class Job(NamedTuple):
  """Inputs of a reader: their numbers from `start` up to `stop`."""

  reader: str
  start: int
  stop: int


def jobs(names: Sequence[str], inputs: int) -> Iterator[Job]:
  """Yields jobs, each of which becomes a line of the record."""
  for start in range(0, inputs, _CHUNK):
    for name in names:
      few = readers.READERS[name].one_in
      stop = min(start + _CHUNK, inputs)
      yield Job(name, start // few, -(-stop // few))


def _lines(file: Path) -> list[dict[str, Any]]:
  if not file.exists():
    return []
  return [json.loads(x) for x in file.read_text().splitlines()]


def summary(job: Job, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What became of the inputs of a job."""
  faults = [x for x in told if 'fault' in x]
  refused = sum(x.get('refused', False) for x in told)
  return {
      **job._asdict(),
      'read': len(told) - refused - len(faults),
      'refused': refused,
      'slowest_seconds': max(x.get('seconds', 0.0) for x in told),
      'faults': faults,
  }


def run(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
  """Yields what became of each input, in their order.

  A worker reads them; a new one begins behind the input of one that has died.

  Raises:
    errors.UserError: A reader does not read its good folder.
  """
  waiting = list(jobs)
  while waiting:
    with tempfile.TemporaryDirectory() as folder:
      command = [
          sys.executable, '-m', 'tests.fuzz.worker', f'{folder}/root',
          *(':'.join(map(str, job)) for job in waiting),
      ]
      worker = _Worker(command)
      for told in worker.lines():
        waiting = _after(waiting, told['input'])
        yield told
    if not waiting:
      return
    if not worker.told:
      raise errors.UserError(
          f'It fails before the first input: {worker.said[-2000:]}',
          waiting[0].reader,
      )
    yield {
        'reader': waiting[0].reader, 'input': waiting[0].start, 'fault': 'ends',
        'what': _why(worker.status, worker.said),
    }
    waiting = _after(waiting, waiting[0].start)


def _after(jobs: list[Job], number: int) -> list[Job]:
  """The jobs behind an input of the first one."""
  first = jobs[0]._replace(start=number + 1)
  return [first, *jobs[1:]] if first.start < first.stop else jobs[1:]


def _why(status: int, said: str) -> str:
  reasons = {-24: 'over the limit of CPU time', -9: 'killed, it said nothing'}
  return reasons.get(status, f'status {status}: {said.strip()[-300:]}')


class _Worker:
  """A process that reads inputs.

  Attributes:
    told: Number of inputs that it told of.
    said: What it wrote to standard error, once it has ended.
    status: Its exit status, once it has ended.
  """

  def __init__(self, command: Sequence[str]):
    self.told, self.said, self.status = 0, '', 0
    self._errors = tempfile.TemporaryFile('w+', errors='replace')
    self._process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=self._errors, text=True
    )

  def lines(self) -> Iterator[dict[str, Any]]:
    """Yields what it tells; it is killed when it says nothing any more."""
    with self._process as process, self._errors as said:
      for line in self._timed(process):
        self.told += 1
        yield json.loads(line)
      self.status = process.wait()
      said.seek(0)
      self.said = said.read()

  def _timed(self, process: subprocess.Popen) -> Iterator[str]:
    while True:
      timer = threading.Timer(_SILENCE_SECONDS, process.kill)
      timer.start()
      line = process.stdout.readline()
      timer.cancel()
      if not line:
        return
      yield line


def table(lines: Sequence[dict[str, Any]]) -> str:
  """The figures of each reader, in Markdown."""
  rows = ['| reader | inputs | read | refused | faults | slowest, s of CPU |',
          '|---|--:|--:|--:|--:|--:|']
  for name in readers.READERS:
    of = [x for x in lines if x['reader'] == name]
    if of:
      total = lambda key, of=of: sum(x[key] for x in of)
      faults = sum(len(x['faults']) for x in of)
      slowest = max(x['slowest_seconds'] for x in of)
      inputs = sum(x['stop'] - x['start'] for x in of)
      rows.append(
          f'| {name} | {inputs:,} | {total("read"):,} | {total("refused"):,} '
          f'| {faults} | {slowest:.1f} |'
      )
  return '\n'.join(rows)


if __name__ == '__main__':
  flags.run(main)
