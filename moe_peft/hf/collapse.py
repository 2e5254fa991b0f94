# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routed low-rank experts to one ordinary LoRA, and what that costs.

Each expert gets a constant weight, the mean of its gates over calibration
rows. What is lost is measured on rows that no gate was averaged over.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import seqio

from moe_peft import errors
from moe_peft.core import observe
from moe_peft.data import converters
from moe_peft.data import example_rows
from moe_peft.data import examples
from moe_peft.data import lengths
from moe_peft.data import row_parsers
from moe_peft.data import row_reader
from moe_peft.data import token_tasks
from moe_peft.evaluation import batches
from moe_peft.hf import folds
from moe_peft.hf import merge
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_BATCH_SIZE = 16
_logger = logging.getLogger(__name__)
# One of so many rows is held out.
_HELD_OUT = 4
# Nats a target token that a collapsed model may lose before the command says
# that it is not worth it: 2 % of perplexity.
WORTH_IT = 0.02

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
    losses: Mean loss of a target token in nats on the rows held out: 'routed',
      'collapsed', 'base'.
    num_examples: Examples that the gates were averaged over; each answer of a
      conversation may be one.
    num_held_out: Examples that the losses were measured on.
  """

  sites: list[sites_lib.AdaptedSite]
  params: Mapping[str, np.ndarray]
  losses: Mapping[str, float]
  num_examples: int
  num_held_out: int

  @property
  def cost(self) -> float:
    """What collapsing costs, in nats a target token."""
    return self.losses['collapsed'] - self.losses['routed']

  @property
  def worth_it(self) -> bool:
    return self.cost <= WORTH_IT  # A NaN is not.


def collapse(
    trained: trained_lib.Trained,
    rows: Sequence[examples.Parsed],
    rank: int | None,
    measure: Measure,
) -> Collapsed:
  """Collapses all experts.

  Args:
    trained: A model with low-rank experts.
    rows: What `read_rows` has read; one in four is held out.
    rank: Rank of the LoRA; None keeps num_experts * rank.
    measure: The `measure_fn` of the model.

  Raises:
    errors.UserError: If the experts are no LoRAs, or as `make_batches`.
  """
  for site in trained.sites:
    ranks = (site.spec['router'] or {}).get('units', 1) > 1
    if site.spec['kind'] != 'low_rank' or ranks:
      raise errors.UserError(
          f'{site.method} (at {site.path}) has no low-rank experts with a '
          'weight each.', where='--collapse',
          remedy='--collapse is for MoLoRA and its relatives; --format full '
          'exports all methods.',
      )
  calibration, held_out = (make_batches(trained, x) for x in split(rows))
  _, gates = measure(trained.params, calibration)
  sites = [
      folds.weighted(site, gates.get(site.path, np.ones(1)), rank)
      for site in trained.sites
  ]
  params = merge.merged_params(trained, sites)
  losses = {
      'routed': measure(trained.params, held_out)[0],
      'collapsed': measure(params, held_out)[0],
      'base': measure(trained.base_params, held_out)[0],
  }
  return Collapsed(
      sites, params, losses, _num_rows(calibration), _num_rows(held_out)
  )


def _num_rows(batches_of: Sequence[Mapping[str, np.ndarray]]) -> int:
  """Examples in batches, which may end with rows of padding alone."""
  return sum(int(x['decoder_loss_weights'].any(1).sum()) for x in batches_of)


def split(rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
  """Rows to average over and rows held out, the same ones every time.

  Raises:
    errors.UserError: If there is one row.
  """
  if len(rows) < 2:
    raise errors.UserError(
        'What collapsing costs is measured on rows that are held out, and '
        'there is one row only.', where='--collapse',
        remedy='Give more rows, some hundred if you have them.',
    )
  order = np.random.default_rng(0).permutation(len(rows))
  held_out = max(1, len(rows) // _HELD_OUT)
  return (
      [rows[i] for i in order[held_out:]], [rows[i] for i in order[:held_out]]
  )


def measure_fn(trained: trained_lib.Trained) -> Measure:
  """Returns (parameters, batches) -> (loss, gates), for all tasks of a model.

  The loss is the mean over target tokens, in nats; the gates are the mean
  weights of each expert over the real tokens, <float64>[num_experts] by path of
  the routed layer, unrolled.
  """

  @jax.jit
  def run(params, batch):
    model, nested = trained.model_of(params)
    scores, weights, state = model.predict(
        nested, batch, mutable=(observe.COLLECTION,)
    )
    sums = observe.batch_sums(state.get(observe.COLLECTION, {}), batch)
    return (scores.loss * weights).sum(), weights.sum(), sums

  def measure(params, made):
    losses, tokens, sums = zip(
        *(jax.device_get(run(params, batch)) for batch in made), strict=True
    )
    gates = {
        site: observe.existing(
            np.sum([x[site]['load'] for x in sums], 0, np.float64)
            / sum(x[site]['tokens'] for x in sums)
        )
        for site in sums[0]
    }
    return float(sum(losses) / sum(tokens)), gates

  return measure


def read_rows(
    file: Path, per_task: bool = False
) -> dict[str, list[examples.Parsed]]:
  """Reads examples of any format that `local.register_task` reads.

  Args:
    file: Of a kind that it reads.
    per_task: Whether each row has a "task".

  Returns:
    The rows by task; without tasks all of them, by ''.

  Raises:
    errors.UserError: For anything wrong, with the line's number, and for a
      task of one row.
  """
  column = 'task' if per_task else None
  reader = row_reader.RowReader(
      row_parsers.Keys(), None, lambda target: None, column
  )
  found: dict[str, list[examples.Parsed]] = {}
  for row in reader(str(file)):
    if isinstance(row, examples.Preference):
      raise errors.UserError(
          'Pairs of answers have no loss of a target.', row.place,
          'Give rows of prompts and answers.',
      )
    task = row.example_id or ''
    if '/' in task or task.startswith('.'):
      raise errors.UserError(
          f'--per_task makes a folder for each "task", and {task!r} is no name '
          'of one.', where='--per_task',
          remedy=f'Give each row of {file} a "task" without / that does not '
          'begin with a dot.',
      )
    row = dataclasses.replace(row, example_id=None)
    found.setdefault(task, []).append(row)
  for of_task in found.values():
    split(of_task)
  return dict(sorted(found.items()))


def make_batches(
    trained: trained_lib.Trained, rows: Sequence[examples.Parsed]
) -> list[dict[str, np.ndarray]]:
  """Model features <int32>[batch, length] of rows, as training makes them.

  What is longer than the lengths of the run is cut at the left, or left out if
  its answer is.

  Raises:
    errors.UserError: If there is no vocabulary, or nothing fits.
  """
  vocabulary, limits = trained.vocabulary, trained.lengths
  if vocabulary is None:
    raise errors.UserError(
        '--collapse needs the vocabulary of the run.', where='VOCABULARY'
    )
  made = example_rows.as_tokens(
      rows, vocabulary, trained.chat, trained.inputs_end
  )
  record = token_tasks.TokenRecord('', lambda: {'': made}, vocabulary)
  sizes = record.sizes['']
  _, long = lengths.too_long(sizes, lengths.CUT, limits)
  if long == len(made):
    raise errors.UserError(
        f'All answers are longer than those of the run, {limits["targets"]} '
        'tokens.', '--collapse', 'Give rows like those of the training.',
    )
  if long:
    _logger.warning(
        '%d of %d examples are longer than %s and are left out.', long,
        len(made), dict(limits),
    )
  features = dict.fromkeys(limits, seqio.Feature(vocabulary, add_eos=False))
  dataset = record.dataset('', shuffle_files=False)
  dataset = lengths.Fit(lengths.CUT)(dataset, features, limits)
  longest = {
      name: min(limit, max(1, *(size[name] for size in sizes)))
      for name, limit in limits.items()
  }
  dataset = converters.of_model(trained.model)(dataset, longest).enumerate()
  return [batch for _, batch in batches.short(dataset, _BATCH_SIZE)]
