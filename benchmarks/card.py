# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What fits on an accelerator in bfloat16 and how fast it is, against PEFT.

For a card that is at hand for a quarter of an hour: rows of most value first,
each written when it is known. A second call with the same folder goes on where
the first one stopped, and finds what that one compiled.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import sys
import time
from typing import Any

from benchmarks import card_case
from benchmarks import layer
from benchmarks import peers
from benchmarks import processes
from benchmarks import tables
from benchmarks import timing
from moe_peft import errors

COLUMNS = (
    tables.MILLISECONDS,
    tables.FASTEST,
    tables.Column('over_frozen', '/ own frozen'),
    tables.Column('tokens_per_second', 'tokens/s', ',.0f'),
    tables.Column('process_mib', 'peak MiB', ',.0f'),
    tables.Column('peak_mib', 'peak by XLA', ',.0f'),
    tables.Column('compile_seconds', 'compile s', '.1f'),
    tables.PARAMETERS,
    tables.Column('libraries', 'library'),
    tables.Column('error', 'failed'),
)
NOTE = (
    'All in bfloat16, adapters in float32; E 8, r 4 and LoRA of rank 32 on '
    'every dense layer; layers scanned and ATTENTION = auto, unless a row says '
    'otherwise. Cases do not take turns. frozen network: forward pass and '
    'input gradients. PyTorch: transformers with sdpa, PEFT, autocast.'
)
ROUNDS = 5
MIXTURE = {'num_experts': 8, 'rank': 4, 'lora_rank': 32}
# TinyLlama's and LLaMA 3.1 8B's sizes; what T5 there is in gin/models/.
SHAPES = {
    '1B': MIXTURE | {
        'vocab_size': 32000, 'emb_dim': 2048, 'mlp_dim': 5632, 'num_layers': 22,
        'num_heads': 32, 'num_kv_heads': 4, 'head_dim': 64,
        'batch_size': 4, 'length': 2048,
    },
    '8B': MIXTURE | {
        'vocab_size': 128256, 'emb_dim': 4096, 'mlp_dim': 14336,
        'num_layers': 32, 'num_heads': 32, 'num_kv_heads': 8, 'head_dim': 128,
        'batch_size': 1, 'length': 2048,
    },
    'T5-XL': MIXTURE | {
        'model': 't5_1_1_xl', 'batch_size': 16, 'length': 512
    },
    'layer': MIXTURE | {'features': 4096, 'tokens': 16384},
}
TINY = {
    'vocab_size': 64, 'emb_dim': 32, 'mlp_dim': 64, 'num_layers': 2,
    'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 8, 'batch_size': 8,
    'length': 64,
}
TINY_SHAPES = {
    '1B': MIXTURE | TINY,
    '8B': MIXTURE | TINY,
    'T5-XL': MIXTURE | {
        'model': 'tiny_t5', 'batch_size': 8, 'length': 64,
        'bindings': {
            't5.T5Config.num_encoder_layers': 2,
            't5.T5Config.num_decoder_layers': 2,
        },
    },
    'layer': MIXTURE | {'features': 64, 'tokens': 64},
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row.

  Attributes:
    shape: Key of `SHAPES`.
    name: What card_case.py calls it, or for a peer a name.
    peer: Key of `torch_peers.CASES`; None: ours.
    bindings: Bindings of gin; what else a peer is given.
  """

  shape: str
  name: str
  peer: str | None = None
  bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def library(self) -> str:
    """What its name begins with."""
    return f'{self.shape}, {peers.PYTORCH if self.peer else ""}'

  @property
  def case(self) -> str:
    """Its name in the table."""
    more = ''.join(f', {k} {v}' for k, v in self.bindings.items())
    return f'{self.library}{self.name}{more}'


FROZEN, LORA = card_case.FROZEN, layer.PLAIN_LORA
ROWS = (
    Row('1B', layer.SOFT),
    Row('1B', LORA),
    Row('1B', FROZEN),
    Row('1B', LORA, 'llama/peft_lora'),
    Row('1B', LORA, 'llama/peft_lora', {'compile': True}),
    Row('1B', FROZEN, 'llama/frozen'),
    Row('1B', layer.SOFT, bindings={'ATTENTION': 'fused'}),
    Row('1B', layer.TOP_2),
    Row('1B', layer.SOFT, bindings={'BASE_DTYPE': 'int8'}),
    Row('1B', layer.SOFT, bindings={'BASE_DTYPE': 'nf4'}),
    Row('8B', layer.SOFT, bindings={'BASE_DTYPE': 'nf4'}),
    Row('8B', LORA, bindings={'BASE_DTYPE': 'nf4'}),
    *(
        Row('layer', name)
        for name in (
            layer.MATMUL, layer.FROZEN, layer.PLAIN_LORA, layer.SOFT,
            layer.TOP_2,
        )
    ),
    Row('layer', layer.MATMUL, 'layer/matmul'),
    Row('layer', layer.FROZEN, 'layer/frozen'),
    Row('layer', layer.PLAIN_LORA, 'layer/peft_lora'),
    Row('T5-XL', layer.SOFT),
    Row('T5-XL', LORA),
    Row('1B', layer.SOFT, bindings={'SCAN_LAYERS': False}),
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> Iterator[tables.Table]:
  """One table, of as many rows as there is time for.

  Raises:
    errors.UserError: It cannot be measured on this machine, or the folder has
      the rows of another one.
  """
  deadline = time.monotonic() + 60 * options.minutes
  progress('find the card')
  device = _process('card', {}, options)
  device.close()
  if not options.quick:
    _check_machine(device.facts, options)
  title = f'bfloat16 on {device.facts["card"]}' + ', tiny' * options.quick
  path = options.folder / 'card.json'
  known = _known(path, title)
  # What has failed before comes last.
  todo = _missing(known, options)
  for row in sorted(todo, key=lambda row: row.case in known):
    left = deadline - time.monotonic()
    if left <= 0:
      break
    progress(row.case)
    known[row.case] = measure(row, options, left, device.facts['platform'])
    tables.save([_table(title, known, options)], path)
  yield _table(title, known, options)


def _check_machine(facts: Mapping[str, Any], options: tables.Options) -> None:
  """Refuses a machine without an accelerator, or with several.

  Steps would be split over all of them, and PyTorch's are on one.
  """
  if facts['platform'] == 'cpu':
    raise errors.UserError(
        'JAX finds no accelerator here.', '--only card',
        'With --quick the same rows run at tiny sizes.',
    )
  if facts['devices'] > 1:
    raise errors.UserError(
        f'JAX finds {facts["devices"]} devices here, and this is a table of '
        'one.', '--only card',
        'Show it one, for example with CUDA_VISIBLE_DEVICES=0.',
    )
  if facts['platform'] != 'gpu' and options.peer_python:
    raise errors.UserError(
        "PyTorch's rows run on GPUs alone.", '--peer_python', 'Leave it out.'
    )


def _missing(
    known: Mapping[str, dict[str, Any]], options: tables.Options
) -> list[Row]:
  """Rows without figures; PyTorch's can have them with its interpreter."""
  return [
      row for row in ROWS
      if 'fastest' not in known.get(row.case, {})
      and (row.peer is None or options.peer_python)
  ]


def _known(path: Path, title: str) -> dict[str, dict[str, Any]]:
  """Rows that a folder has, by case."""
  if not path.exists():
    return {}
  (table,) = json.loads(path.read_text())
  if table['title'] != title:
    raise errors.UserError(
        f'{path} has the rows of {table["title"]}, and this is {title}.',
        '--out', 'Name another folder.',
    )
  return {row['case']: row for row in table['rows']}


def _table(
    title: str, known: Mapping[str, dict[str, Any]], options: tables.Options
) -> tables.Table:
  """The rows that are known, in the order of `ROWS`."""
  rows = [known[row.case] for row in ROWS if row.case in known]
  for row in ROWS:
    reference = known.get(f'{row.library}{FROZEN}') or known.get(
        f'{row.library}{layer.FROZEN}'
    )
    of_row = known.get(row.case, {})
    if reference and 'fastest' in of_row and 'fastest' in reference:
      of_row['over_frozen'] = of_row['fastest'] / reference['fastest']
  notes = [NOTE]
  if missing := len(_missing(known, options)):
    notes.append(
        f'{missing} rows are missing or failed: the same command goes on.'
    )
  if not options.peer_python:
    notes.append(peers.HOW_TO_INSTALL)
  return tables.Table('card', title, COLUMNS, rows, notes)


def measure(
    row: Row, options: tables.Options, seconds: float, platform: str
) -> dict[str, Any]:
  """What is known of a row.

  Args:
    row: The row.
    options: Options of the command line.
    seconds: Time that is left.
    platform: As JAX names it.

  Returns:
    What the table has of it; of one that failed, or for which the time did not
    suffice, its `error` alone.
  """
  deadline = time.monotonic() + seconds
  sizes = (TINY_SHAPES if options.quick else SHAPES)[row.shape]
  try:
    if row.peer is None:
      process = _process(
          row.name,
          {**sizes, 'bindings': sizes.get('bindings', {}) | row.bindings},
          options, seconds,
      )
    else:
      process = _peer(row, sizes, options, seconds, platform)
    try:
      timed = timing.interleave(
          {row.case: process}, 1 if options.quick else ROUNDS, lambda text: None
      )[row.case]
    finally:
      process.close()
  except processes.Ended as error:
    in_time = time.monotonic() < deadline
    said = error.said[:200] if in_time else 'The time was up.'
    return {'case': row.case, 'error': said}
  tokens = sizes.get('tokens') or sizes['batch_size'] * sizes['length']
  if 'model' in sizes:
    tokens += tokens // 4  # Its targets.
  return {
      'case': row.case,
      **process.facts,
      **timed,
      'tokens_per_second': tokens / timed['seconds'],
      'process_mib': process.peak_mib,
      'error': '',
  }


def _process(
    case: str,
    sizes: Mapping[str, Any],
    options: tables.Options,
    seconds: float | None = None,
) -> processes.Process:
  """Starts one of our cases."""
  return processes.Process(
      [sys.executable, '-m', 'benchmarks.card_case'],
      {'case': case, **sizes},
      {'JAX_COMPILATION_CACHE_DIR': str(options.folder / 'card_cache')},
      seconds,
  )


def _peer(row, sizes, options, seconds, platform) -> peers.Peer:
  """Starts one of the peers' cases."""
  sizes = dict(sizes)
  if 'length' in sizes:
    sizes['tokens'] = [sizes['batch_size'], sizes['length']]
  return peers.Peer(
      options.peer_python,
      row.peer,
      {
          'threads': options.threads,
          'device': 'cuda' if platform == 'gpu' else 'cpu',
          'dtype': 'bfloat16',
          **sizes,
          **row.bindings,
      },
      environment={
          'TORCHINDUCTOR_CACHE_DIR': str(options.folder / 'card_cache_torch')
      },
      seconds=seconds,
  )
