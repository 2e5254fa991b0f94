# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parity of exports: methods x families x formats, JAX against torch.

    python -m tests.hf.parity --out results/hf

writes `parity.md`: of each cell the largest difference of logits over the
largest logit, in float32, and whether 64 tokens of cached greedy generation are
the same.
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
from pathlib import Path
import tempfile
from unittest import mock

import jax
import numpy as np

from moe_peft import errors
from moe_peft.hf import export
from moe_peft.hf import fixture
from moe_peft.hf import trained as trained_lib
from moe_peft.hf import verify
from tests.hf import adapted

FORMATS = ('peft', 'merged', 'full')
TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Cell:
  """What was measured of one folder.

  Attributes:
    difference: Largest difference of logits, over the largest logit.
    effect: How far the adapter moves a logit, over the largest logit.
    equal: Whether the difference is within the folder's tolerance.
    same_tokens: Whether greedy generation gives the same tokens; None: not
      tried.
  """

  difference: float
  effect: float
  equal: bool
  same_tokens: bool | None = None


@functools.cache
def trained(method: str, family: str) -> trained_lib.Trained:
  return adapted.make(method, family)


_LOGITS = fixture.logits


@functools.cache
def base_logits(family: str) -> np.ndarray:
  """Those of a family's base, which is the same below all methods."""
  model = trained('lora', family)
  return _LOGITS(model, model.base_params, fixture.inputs(model))


@contextlib.contextmanager
def one_fixture(method: str, family: str) -> Iterator[None]:
  """All formats of a model share what JAX computes."""

  @functools.cache
  def logits():
    model = trained(method, family)
    return _LOGITS(model, model.params, fixture.inputs(model))

  def cached(model, params, arrays):
    del arrays
    return logits() if params is model.params else base_logits(family)

  with mock.patch.object(fixture, 'logits', cached):
    yield


def measure(
    method: str, family: str, file_format: str, folder: Path,
    generate: bool = False, **options: str,
) -> Cell:
  """Exports one model and compares.

  Args:
    method: A key of `adapted.METHODS`.
    family: A key of `adapted.FAMILIES`.
    file_format: One of `FORMATS`.
    folder: Folder to write.
    generate: Whether to compare generated tokens too.
    **options: Of `export.export`.

  Raises:
    errors.UserError: If the format cannot hold the method.
  """
  model = trained(method, family)
  export.export(model, folder, file_format, **options)
  verdict = verify.verify(folder)
  assert verdict.same_base, verdict
  same = None
  if generate:
    loaded, _ = verify.load(folder)
    ours = our_tokens(method, family)
    same = np.array_equal(their_tokens(loaded, model, ours.shape[1]), ours)
  return Cell(
      verdict.model / verdict.size, verdict.effect / verdict.size,
      verdict.equal, same,
  )


def prompts(model: trained_lib.Trained) -> np.ndarray:
  """Two rows of ids, the second one of T5 with padding."""
  rng = np.random.default_rng(5)
  ids = rng.integers(3, model.config.vocab_size, (2, 12), dtype=np.int32)
  if model.network.task_type == 'SEQ_2_SEQ_LM':
    ids[1, 7:] = 0
  return ids


@functools.cache
def our_tokens(method: str, family: str, count: int = TOKENS) -> np.ndarray:
  """Greedy tokens of JAX, <int32>[2, count], zeros after the end."""
  model = trained(method, family)
  network, params = model.model_of(model.params)
  with jax.default_matmul_precision('highest'):
    run = jax.jit(lambda params, ids: network.generate(params, ids, count))
    return np.asarray(run(params, prompts(model)))


def their_tokens(loaded, model: trained_lib.Trained, count: int) -> np.ndarray:
  """Greedy tokens of torch with its cache, as `our_tokens`."""
  import torch

  ids = prompts(model)
  decoder = model.network.task_type == 'CAUSAL_LM'
  mask = np.ones_like(ids) if decoder else ids > 0
  if decoder:
    ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=model.model.bos_id)
    mask = np.ones_like(ids)
  found = loaded.generate(
      input_ids=torch.from_numpy(ids).long(),
      attention_mask=torch.from_numpy(np.asarray(mask, np.int64)),
      max_new_tokens=count,
      do_sample=False,
      use_cache=True,
      pad_token_id=0,
  ).numpy()
  found = found[:, ids.shape[1] if decoder else 1 :]
  return np.pad(found, ((0, 0), (0, count - found.shape[1])))


def of_last_bits(method: str, family: str) -> float:
  """How far changes of every parameter's last bit move JAX's own logits."""
  model = trained(method, family)
  inputs = fixture.inputs(model)
  want = _LOGITS(model, model.params, inputs)
  rng = np.random.default_rng(0)
  params = {
      name: np.nextafter(x, x + rng.choice([-1, 1], x.shape).astype(x.dtype))
      for name, x in model.params.items()
  }
  moved = np.abs(_LOGITS(model, params, inputs) - want)
  return moved.max() / np.abs(want).max()


def row(family: str, method: str) -> str:
  """One line of the table."""
  found = []
  with one_fixture(method, family), tempfile.TemporaryDirectory() as work:
    for name in FORMATS:
      try:
        cell = measure(method, family, name, Path(work) / name, True)
      except errors.UserError:
        found.append('refused')
      else:
        tokens = {True: 'same', False: 'OTHER'}[cell.same_tokens]
        above = '' if cell.equal else (
            f' ABOVE (last bits {of_last_bits(method, family):.1e})'
        )
        found.append(f'{cell.difference:.1e}{above}, {tokens}')
  return f'| {family} | {method} | ' + ' | '.join(found) + ' |\n'


_HEAD = f"""\
# Parity of exports

Written by `python -m tests.hf.parity`, which measures the rows that are not
here yet: the largest difference of logits, torch against JAX, over the largest
logit, in float32, and whether {TOKENS} tokens of cached greedy generation are
the same. `merged` is refused where experts are no matrices. Models are tiny,
with random weights and adapters. Beside differences ABOVE the bound stands how
far the last bits of the parameters move the logits, in JAX alone. Here are {{}}
of {{}} rows.

"""
_COLUMNS = f"""\
| family | method | {' | '.join(FORMATS)} |
| --- | --- |{' --- |' * len(FORMATS)}
"""
# Programs of so many rows are kept: those of single operations serve them all.
_ROWS_KEPT = 8


def order() -> list[tuple[str, str]]:
  """All rows: those of two families, those of all kinds of experts, others."""
  pairs = [
      (family, method)
      for family in adapted.FAMILIES for method in adapted.methods_of(family)
  ]
  kinds = 'all_kinds', 'newer', 'newer_plain', 'bank'
  return sorted(pairs, key=lambda pair: (
      pair[0] not in ('t5', 'llama'), pair[1] not in kinds,
      list(adapted.METHODS).index(pair[1]),
  ))


def read(file: Path) -> dict[tuple[str, str], str]:
  """Lines of a table by family and method; none if there is no file."""
  if not file.is_file():
    return {}
  lines = file.read_text().split(_COLUMNS)[1].splitlines(True)
  return {tuple(line.removeprefix('| ').split(' | ')[:2]): line
          for line in lines}


def write(file: Path, rows: dict[tuple[str, str], str]) -> None:
  """Writes a table, families together."""
  families, methods = list(adapted.FAMILIES), list(adapted.METHODS)
  keys = sorted(
      rows, key=lambda key: (families.index(key[0]), methods.index(key[1]))
  )
  head = _HEAD.format(len(rows), len(order()))
  file.write_text(head + _COLUMNS + ''.join(rows[key] for key in keys))


def main() -> None:
  """Measures what the table lacks."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=Path, default=Path('results/hf'))
  parser.add_argument('--families', nargs='+', default=list(adapted.FAMILIES))
  parser.add_argument('--methods', nargs='+', default=list(adapted.METHODS))
  args = parser.parse_args()
  # Programs of tiny models take longer to compile than to run.
  jax.config.update('jax_disable_most_optimizations', True)
  _one_thread()
  args.out.mkdir(parents=True, exist_ok=True)
  file = args.out / 'parity.md'
  rows = read(file)
  missing = [
      (family, method) for family, method in order()
      if family in args.families and method in args.methods
      and (family, method) not in rows
  ]
  for number, key in enumerate(missing, 1):
    rows[key] = row(*key)
    trained.cache_clear()
    if number % _ROWS_KEPT == 0:
      jax.clear_caches()
    print(rows[key], end='', flush=True)
    write(file, rows)


def _one_thread() -> None:
  """Threads of torch only wait for each other in models of this size."""
  import torch

  torch.set_num_threads(1)


if __name__ == '__main__':
  main()
