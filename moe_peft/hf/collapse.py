# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routed low-rank experts to one ordinary LoRA, with a measured loss (ours).

Each expert's gate is replaced by its mean over a calibration set. A weighted
sum of low-rank updates is one update of rank num_experts * rank, which an SVD
can cut. What that costs is measured on the same examples: the mean loss of a
target token with routing, collapsed, and of the bare base.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import observe
from moe_peft.core import trainable
from moe_peft.hf import merge
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_BATCH_SIZE = 16
_MAX_LENGTH = 512


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
    rank: int | None = None,
) -> Collapsed:
  """Collapses all experts.

  Args:
    trained: A model with low-rank experts.
    rows: Calibration examples with 'inputs' and 'targets'.
    rank: Rank of the LoRA; None keeps num_experts * rank.

  Raises:
    errors.UserError: If the experts are vectors, or there is no vocabulary.
  """
  for site in trained.sites:
    if site.spec['kind'] != 'low_rank':
      raise errors.UserError(
          f'{site.method} (at {site.path}) has no low-rank experts; --collapse '
          'is for MoLoRA and its relatives.'
      )
  batches = _batches(trained, rows)
  gates = mean_gates(trained, batches)
  sites = [_collapse_site(s, gates.get(s.path), rank) for s in trained.sites]
  params = merge.merged_params(trained, sites)
  measured = {
      'routed': mean_loss(trained, batches, trained.params),
      'collapsed': mean_loss(trained, batches, params),
      'base': mean_loss(trained, batches, trained.base_params),
  }
  return Collapsed(sites, params, measured, len(rows))


def read_rows(file: Path) -> list[dict[str, Any]]:
  """Reads JSON Lines with 'inputs' and 'targets'.

  Raises:
    errors.UserError: For anything wrong, with the line's number.
  """
  try:
    lines = file.read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f'{file} cannot be read: {error}') from error
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      good = all(isinstance(row[key], str) for key in ('inputs', 'targets'))
    except (ValueError, KeyError, TypeError):
      good = False
    if not good:
      raise errors.UserError(
          f'{file}, line {number}: each line must be an object like '
          '{"inputs": "...", "targets": "..."}.'
      )
    rows.append(row)
  if not rows:
    raise errors.UserError(f'{file} is empty.')
  return rows


def _batches(trained, rows) -> list[dict[str, np.ndarray]]:
  vocabulary = trained.vocabulary
  if vocabulary is None:
    raise errors.UserError('--collapse needs the vocabulary of the run.')
  ids = {
      key: [
          [*vocabulary.encode(row[key]), vocabulary.eos_id][:_MAX_LENGTH]
          for row in rows
      ]
      for key in ('inputs', 'targets')
  }
  # One shape for all batches: one compilation.
  lengths = {key: max(map(len, value)) for key, value in ids.items()}
  batches = []
  for start in range(0, len(rows), _BATCH_SIZE):
    arrays = {}
    for key, length in lengths.items():
      arrays[key] = np.zeros((_BATCH_SIZE, length), np.int32)
      for row, values in enumerate(ids[key][start : start + _BATCH_SIZE]):
        arrays[key][row, : len(values)] = values
    targets = arrays['targets']
    batches.append({
        'encoder_input_tokens': arrays['inputs'],
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
    })
  return batches


def mean_gates(
    trained: trained_lib.Trained, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Mean weight of each expert over the real tokens of the batches.

  Returns:
    <float64>[num_experts] by path of the routed layer, unrolled.
  """
  module = trained.float32_module
  params = {k: np.asarray(v, np.float32) for k, v in trained.params.items()}

  @jax.jit
  def run(params, batch):
    _, collections = module.apply(
        {'params': trainable.unflatten(params)},
        **batch,
        enable_dropout=False,
        mutable=[observe.COLLECTION],
    )
    return observe.batch_sums(collections.get(observe.COLLECTION, {}), batch)

  means: dict[str, np.ndarray] = {}
  by_batch = [jax.device_get(run(params, batch)) for batch in batches]
  for site in by_batch[0]:
    load, tokens = (
        np.sum([sums[site][name] for sums in by_batch], 0, np.float64)
        for name in ('load', 'tokens')
    )
    means[site] = load / tokens
  return means


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
  spec = {
      **site.spec,
      'num_experts': 1,
      'router': None,
      'rank': full,
      'alpha': float(full),
  }
  tensors = {
      'lora_a': down[None].astype(np.float32),
      'lora_b': up[None].astype(np.float32),
  }
  return dataclasses.replace(
      site, method='LoRA', spec=spec, tensors=tensors
  )


def _truncate(down, up, rank):
  """Best approximation of `down @ up` of a rank, without building it."""
  down_q, down_r = np.linalg.qr(down)
  up_q, up_r = np.linalg.qr(up.T)
  u, s, v = np.linalg.svd(down_r @ up_r.T)
  root = np.sqrt(s[:rank])
  return down_q @ u[:, :rank] * root, (up_q @ v[:rank].T * root).T


def mean_loss(trained, batches, params) -> float:
  """Mean cross entropy of a target token, in nats."""
  module = trained.float32_module
  if not any(trainable.is_adapter(path) for path in params):
    module = module.module
  params = {k: np.asarray(v, np.float32) for k, v in params.items()}

  @jax.jit
  def run(params, batch):
    logits = module.apply(
        {'params': trainable.unflatten(params)}, **batch, enable_dropout=False
    )
    targets = batch['decoder_target_tokens']
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], -1)
    weights = targets > 0
    return -(chosen[..., 0] * weights).sum(), weights.sum()

  total, count = 0.0, 0
  for batch in batches:
    loss, tokens = run(params, batch)
    total, count = total + float(loss), count + int(tokens)
  return total / count

