# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routed low-rank experts to one ordinary LoRA, with a measured loss (ours).

Each expert's gate is replaced by its mean over a calibration set. A weighted
sum of low-rank updates is one update of rank num_experts * rank, which an SVD
can cut. What that costs is measured on the same examples: the mean loss of a
target token with routing, collapsed, and of the bare base.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from moe_peft import errors
from moe_peft.core import observe
from moe_peft.data import text_files
from moe_peft.hf import merge
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_BATCH_SIZE = 16
_MAX_LENGTH = 512
_LENGTH_MULTIPLE = 32

# See `measure_fn`.
Measure = Callable[
    [Mapping[str, Any], Sequence[Mapping[str, np.ndarray]]],
    tuple[float, dict[str, np.ndarray]],
]


@dataclasses.dataclass(frozen=True)
class Collapsed:
  """An ordinary LoRA made of routed experts.

  Attributes:
    sites: The adapters, without routers.
    params: Flat parameters of the base with the LoRA merged in.
    losses: Mean loss of a target token in nats: 'routed', 'collapsed', 'base'.
    num_examples: Size of the calibration set.
  """

  sites: list[sites_lib.AdaptedSite]
  params: Mapping[str, np.ndarray]
  losses: Mapping[str, float]
  num_examples: int


def collapse(
    trained: trained_lib.Trained,
    rows: Sequence[Mapping[str, Any]],
    rank: int | None,
    measure: Measure,
) -> Collapsed:
  """Collapses all experts.

  Args:
    trained: A model with low-rank experts.
    rows: Calibration examples with 'inputs' and 'targets'.
    rank: Rank of the LoRA; None keeps num_experts * rank.
    measure: The `measure_fn` of the model.

  Raises:
    errors.UserError: If the experts are vectors, or there is no vocabulary.
  """
  for site in trained.sites:
    if site.spec['kind'] != 'low_rank':
      raise errors.UserError(
          f'{site.method} (at {site.path}) has no low-rank experts.',
          where='--collapse',
          remedy='--collapse is for MoLoRA and its relatives.',
      )
  batches = make_batches(trained, rows)
  routed, gates = measure(trained.params, batches)
  sites = [_collapse_site(s, gates.get(s.path), rank) for s in trained.sites]
  params = merge.merged_params(trained, sites)
  losses = {
      'routed': routed,
      'collapsed': measure(params, batches)[0],
      'base': measure(trained.base_params, batches)[0],
  }
  return Collapsed(sites, params, losses, len(rows))


def measure_fn(trained: trained_lib.Trained) -> Measure:
  """Returns (parameters, batches) -> (loss, gates), for all tasks of a model.

  The loss is the mean over target tokens, in nats; the gates are the mean
  weights of each expert over the real tokens, <float64>[num_experts] by path of
  the routed layer, unrolled.
  """

  @jax.jit
  def run(params, batch):
    logits, state = trained.apply(params, batch, mutable=[observe.COLLECTION])
    targets = batch['decoder_target_tokens']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    sums = observe.batch_sums(state.get(observe.COLLECTION, {}), batch)
    return (losses * (targets > 0)).sum(), (targets > 0).sum(), sums

  def measure(params, batches):
    losses, tokens, sums = zip(
        *(jax.device_get(run(params, batch)) for batch in batches), strict=True
    )
    gates = {
        site: np.sum([x[site]['load'] for x in sums], 0, np.float64)
        / sum(x[site]['tokens'] for x in sums)
        for site in sums[0]
    }
    return float(sum(losses) / sum(tokens)), gates

  return measure


def read_rows(file: Path) -> list[dict[str, Any]]:
  """Reads JSON Lines with 'inputs' and 'targets'.

  Raises:
    errors.UserError: For anything wrong, with the line's number.
  """
  try:
    content = file.read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'{file} cannot be read: {error.strerror}.', where=file
    ) from error
  rows = []
  for place, row in text_files.json_lines(content, file):
    if not all(isinstance(row.get(key), str) for key in ('inputs', 'targets')):
      raise errors.UserError(
          'The row lacks inputs or targets.', where=place,
          remedy='Each line must be an object like {"inputs": "...", '
          '"targets": "..."}.',
      )
    rows.append(row)
  if not rows:
    raise errors.UserError(f'{file} is empty.', where=file)
  return rows


def make_batches(
    trained: trained_lib.Trained, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, np.ndarray]]:
  """Model features <int32>[batch, length] of all rows, in equal shapes."""
  vocabulary = trained.vocabulary
  if vocabulary is None:
    raise errors.UserError(
        '--collapse needs the vocabulary of the run.', where='VOCABULARY'
    )
  num_rows = len(rows) + -len(rows) % _BATCH_SIZE
  tokens = {}
  for key in ('inputs', 'targets'):
    ids = [
        [*vocabulary.encode(row[key]), vocabulary.eos_id][:_MAX_LENGTH]
        for row in rows
    ]
    # Few different lengths make few compilations.
    length = max(map(len, ids))
    length += -length % _LENGTH_MULTIPLE
    tokens[key] = np.zeros((num_rows, length), np.int32)
    for index, values in enumerate(ids):
      tokens[key][index, : len(values)] = values
  shifted = np.pad(tokens['targets'], ((0, 0), (1, 0)))[:, :-1]
  features = {
      'encoder_input_tokens': tokens['inputs'],
      'decoder_input_tokens': shifted,
      'decoder_target_tokens': tokens['targets'],
  }
  return [
      {name: x[i : i + _BATCH_SIZE] for name, x in features.items()}
      for i in range(0, num_rows, _BATCH_SIZE)
  ]


def _collapse_site(site, gates, rank) -> sites_lib.AdaptedSite:
  lora_a, lora_b = site.tensors['lora_a'], site.tensors['lora_b']
  if gates is None:
    gates = np.ones(1)
  if lora_a.shape[0] == 1:  # One for all experts, or the only one.
    lora_b = np.einsum('e,ero->ro', gates, lora_b)[None]
    gates = np.ones(1)
  scale = gates * site.spec['alpha'] / site.spec['rank']
  down = np.concatenate(list(lora_a), axis=1)
  up = np.concatenate(list(lora_b * scale[:, None, None]), axis=0)
  if rank is not None and rank < down.shape[1]:
    down, up = _truncate(down.astype(np.float64), up.astype(np.float64), rank)
  full = down.shape[1]
  return sites_lib.one_expert(
      site,
      {'lora_a': down[None], 'lora_b': up[None]},
      rank=full,
      alpha=float(full),
  )


def _truncate(down, up, rank):
  """Best approximation of `down @ up` of a rank, without building it."""
  down_q, down_r = np.linalg.qr(down)
  up_q, up_r = np.linalg.qr(up.T)
  u, s, v = np.linalg.svd(down_r @ up_r.T)
  root = np.sqrt(s[:rank])
  return down_q @ u[:, :rank] * root, (up_q @ v[:rank].T * root).T
