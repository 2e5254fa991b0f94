# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page shows of tokens: each in the color of its expert."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from moe_peft.routers import statistics
from moe_peft.runs import snapshot_files

_SITES = 8
# The colors of style.css; experts beyond them repeat a color.
_NUM_COLORS = 10


def reads_encoder(site: str) -> bool:
  """Whether a site routes the tokens of the encoder."""
  from moe_peft.core import sites  # It brings JAX; few pages need it.

  return sites.reads_encoder(site)


def _pieces(row: snapshot_files.HeldOutRow, site: str) -> tuple[str, ...]:
  return row.pieces.get('encoder' if reads_encoder(site) else 'decoder', ())


def real_tokens(
    weights: np.ndarray, snapshots: snapshot_files.SnapshotFiles, site: str
) -> np.ndarray:
  """Weights of all tokens but padding, <float64>[tokens, num_experts]."""
  return np.concatenate([
      x[: len(_pieces(row, site))]
      for x, row in zip(weights, snapshots.rows, strict=True)
  ]).astype(np.float64)


def sites(
    snapshots: snapshot_files.SnapshotFiles,
    last: Mapping[str, np.ndarray],
    num_runs: int,
) -> list[tuple[str, float, list[Any]]]:
  """The sites of each stack whose experts differ most from token to token.

  Args:
    snapshots: Snapshots of a run.
    last: Its last weights by site, <float16>[rows, length, num_experts].
    num_runs: Runs on the page; with several, each shows fewer sites.

  Returns:
    Site, mutual information of token and expert in nats, and for each row its
    task and `_spans`.
  """
  nats = {
      site: statistics.mutual_information(real_tokens(x, snapshots, site))
      for site, x in last.items()
  }
  order = sorted(nats, key=lambda s: -np.nan_to_num(nats[s], nan=-1))
  stacks = [
      [site for site in order if reads_encoder(site) == encoder]
      for encoder in (True, False)
  ]
  count = _SITES // (1 if num_runs == 1 else 2)
  count //= 2 if all(stacks) else 1
  return [
      (site, nats[site], [
          (row.task, _spans(pieces, weights[: len(pieces)]))
          for row, weights in zip(snapshots.rows, last[site], strict=True)
          for pieces in [_pieces(row, site)]
      ])
      for stack in stacks for site in stack[:count]
  ]


def _spans(
    pieces: Sequence[str], weights: np.ndarray
) -> list[tuple[str, str, int | str]]:
  """Text, class of style.css and number of the expert where it changes.

  Neighbors of one expert and strength share a span.
  """
  kinds = []
  for share in statistics.normalize(weights):
    if not np.isfinite(share).all():
      kinds.append((None, 0))
      continue
    expert, uniform = int(share.argmax()), 1 / len(share)
    # 0 for an equal share, 1 for all of the weight.
    lead = (share[expert] - uniform) / max(1 - uniform, 1e-9)
    kinds.append((expert, 1 + int(lead > 0.15) + int(lead > 0.5)))
  spans, before = [], None
  for (expert, level), pairs in itertools.groupby(
      zip(kinds, pieces, strict=True), key=lambda pair: pair[0]
  ):
    text = ''.join(piece for _, piece in pairs).replace('\n', '⏎')
    style = '' if expert is None else f'x{expert % _NUM_COLORS} l{level}'
    number = '' if expert in (None, before) else expert
    spans.append((text, style, number))
    before = expert
  return spans
