# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The section of the report that colors tokens by their expert."""

from collections.abc import Sequence
import itertools

import numpy as np

from moe_peft.report import markup
from moe_peft.report import routing_section
from moe_peft.routers import statistics
from moe_peft.runs import expert_records
from moe_peft.runs import run as run_lib

# The colors of style.CSS; experts beyond them repeat a color.
NUM_COLOURS = 10
_SITES = 8
_SITES_OF_MANY = 4


def tokens(runs: Sequence[run_lib.Run]) -> str:
  """Held-out rows, each token in the color of its expert."""
  shown = [
      (i, run) for i, run in enumerate(runs)
      if run.experts.rows and run.experts.last
  ]
  if not shown:
    return '<p class="muted">The run has no snapshot of its routers.</p>'
  count = _SITES if len(shown) == 1 else _SITES_OF_MANY
  return (
      '<p>Held-out rows after the last step. The color and the small number'
      ' are the expert with the largest weight; the paler the color, the less'
      ' its lead over an equal share. A decoder shows the token that it reads.'
      ' Listed are the sites of each stack whose experts differ most from'
      ' token to token (mutual information between token and expert); choose'
      ' one.</p>'
      + ''.join(
          routing_section.block(runs, i, _run(run, count)) for i, run in shown
      )
  )


def _run(run: run_lib.Run, count: int) -> str:
  experts = run.experts
  by_site = {
      site: statistics.mutual_information(
          expert_records.real_tokens(x, experts.rows, site)
      )
      for site, x in experts.last.items()
  }
  order = sorted(by_site, key=lambda s: -np.nan_to_num(by_site[s], nan=-1))
  of_stack = {
      stack: [s for s in order if expert_records.stack_of(s) == stack]
      for stack in ('encoder', 'decoder')
  }
  both = all(of_stack.values())
  chosen = [
      site for sites in of_stack.values()
      for site in sites[: count // 2 if both else count]
  ]
  name = f'tokens-{markup.escape(run.name)}'
  parts = []
  for index, site in enumerate(chosen):
    state = ' open' if index == 0 else ''
    parts.append(
        f'<details name="{name}"{state}><summary><code>{markup.escape(site)}'
        f'</code> {by_site[site]:.2f} nats</summary>'
        + _site(site, experts.last[site], experts.rows)
        + '</details>'
    )
  return ''.join(parts)


def _site(site: str, weights: np.ndarray, rows) -> str:
  stack = expert_records.stack_of(site)
  lines, last = [], None
  for row, of_row in zip(rows, weights, strict=True):
    pieces = row.pieces.get(stack, ())
    head = f'<dt>{markup.escape(row.task)}</dt>' if row.task != last else ''
    last = row.task
    lines.append(f'{head}<dd>{_line(pieces, of_row[: len(pieces)])}</dd>')
  return f'<dl class="tokens">{"".join(lines)}</dl>'


def _line(pieces: Sequence[str], weights: np.ndarray) -> str:
  """Neighbours of one expert and strength share a span."""
  shares = statistics.normalize(weights)
  num_experts = shares.shape[-1]
  kinds = []
  for share in shares:
    if not np.isfinite(share).all():
      kinds.append((None, 0))
      continue
    expert = int(share.argmax())
    # 0 for an equal share, 1 for all of the weight.
    lead = (share[expert] - 1 / num_experts) / max(1 - 1 / num_experts, 1e-9)
    kinds.append((expert, 1 + int(lead > 0.15) + int(lead > 0.5)))
  spans, before = [], None
  for (expert, level), group in itertools.groupby(
      zip(kinds, pieces, strict=True), key=lambda pair: pair[0]
  ):
    text = markup.escape(''.join(piece for _, piece in group))
    text = text.replace('\n', '⏎')
    if expert is None:
      spans.append(f'<span>{text}</span>')
    else:
      # The number where the expert changes, not where only its lead does.
      number = f'<sub>{expert}</sub>' if expert != before else ''
      spans.append(
          f'<span class="x{expert % NUM_COLOURS} l{level}">{text}{number}'
          '</span>'
      )
    before = expert
  return ''.join(spans)
