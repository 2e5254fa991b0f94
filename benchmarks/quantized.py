# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a base loses when its kernels have fewer bits."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import jax
import numpy as np
from scipy import special

from benchmarks import devices
from benchmarks import tables
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run as run_lib
from moe_peft.training import scoring

DTYPES = ('float32', 'bfloat16', 'int8', 'nf4')  # The first is the reference.
COLUMNS = (
    tables.Column('base_mib', 'MiB of the base', ',.1f'),
    tables.Column('loss', 'loss, nats', '.4f'),
    tables.Column('error', '% error of logits', '.2f', 100),
    tables.Column('divergence', 'KL divergence, nats', '.5f'),
    tables.Column('agreement', '% same likeliest token', '.1f', 100),
)
NOTE = (
    'At the targets of the first rows of training, without adapters. Error: '
    "the root of the summed squares of the differences to float32's logits, "
    "over that of these logits' deviations from their mean over the "
    'vocabulary. A base that lies on the disk in bfloat16 is the same in both.'
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> Iterator[tables.Table]:
  """The base of an experiment, with `quick` on fewer rows."""
  num_batches = 1 if options.quick else 8
  yield measure(options.experiment, num_batches, options, progress)


def measure(
    file: str,
    num_batches: int,
    options: tables.Options,
    progress: Callable[[str], None],
) -> tables.Table:
  """One table.

  Args:
    file: Gin file of an experiment.
    num_batches: Batches of its rows of training that are scored.
    options: Options of the command line.
    progress: Told what is being done.
  """
  rows, reference = [], None
  for dtype in DTYPES:
    progress(dtype)
    gin_files.load_gin([file], [
        f'BASE_DTYPE={dtype!r}', "MODEL_DIR='unused'",
        "ACTIVATION_DTYPE='float32'",
    ])
    experiment = run_lib.build()
    base = _base(experiment)
    scored = list(_scored(experiment, base, num_batches))
    reference = reference or [logits for logits, _ in scored]
    rows.append({
        'case': dtype,
        'base_mib': sum(x.nbytes for x in jax.tree.leaves(base)) / 2**20,
        **compare(reference, scored),
    })
  return tables.Table(
      'quantized',
      f'A base in fewer bits: {file}, {num_batches} batches of '
      f'{experiment.batch_size} rows, {devices.describe(options.threads)}',
      COLUMNS, rows, (NOTE,),
  )


def _base(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  setup = experiment_lib.prepare(experiment, jax.devices()[:1])
  return trainable.unflatten(
      scoring.base_params({**setup.trainable, **setup.frozen})
  )


def _scored(
    experiment: experiment_lib.Experiment,
    base: Mapping[str, Any],
    num_batches: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Logits, <float32>[n, vocab], and <int32>[n], of the targets of a batch."""
  model = experiment.model.without_adapters()
  apply = jax.jit(lambda batch: model.apply(base, batch)[0])
  for batch in itertools.islice(loop.train_data(experiment), num_batches):
    counts = np.asarray(batch['decoder_loss_weights']) > 0
    targets = np.asarray(batch['decoder_target_tokens'])[counts]
    yield np.asarray(apply(batch))[counts], targets


def compare(
    reference: Sequence[np.ndarray],
    scored: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
  """Values of `COLUMNS`.

  Args:
    reference: Logits of the reference, <float32>[n, vocab] of each batch.
    scored: Logits and targets of what is compared with it.
  """
  sums = collections.Counter()
  for before, (after, targets) in zip(reference, scored, strict=True):
    known, found = (x - special.logsumexp(x, -1, keepdims=True)
                    for x in (before, after))
    centered = before - before.mean(-1, keepdims=True)
    sums['targets'] += len(targets)
    sums['loss'] -= np.take_along_axis(found, targets[:, None], -1).sum()
    sums['square'] += np.square(after - before).sum()
    sums['of'] += np.square(centered).sum()
    sums['divergence'] += (np.exp(known) * (known - found)).sum()
    sums['agreement'] += (before.argmax(-1) == after.argmax(-1)).sum()
  return {
      'error': float(np.sqrt(sums['square'] / sums['of'])),
      **{x: float(sums[x] / sums['targets'])
         for x in ('loss', 'divergence', 'agreement')},
  }
