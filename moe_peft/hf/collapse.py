# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routed low-rank experts to one ordinary LoRA, and what that costs.

Each expert gets a constant weight, the mean of its gates over calibration
rows. What is lost is measured on rows that no gate was averaged over.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from moe_peft import errors
from moe_peft.core import observe
from moe_peft.data import converters
from moe_peft.data import text_files
from moe_peft.hf import folds
from moe_peft.hf import merge
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_BATCH_SIZE = 16
_MAX_LENGTH = 512
_LENGTH_MULTIPLE = 32
# One row of so many is held out.
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
    num_examples: Rows that the gates were averaged over.
    num_held_out: Rows that the losses were measured on.
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
    rows: Sequence[Mapping[str, Any]],
    rank: int | None,
    measure: Measure,
) -> Collapsed:
  """Collapses all experts.

  Args:
    trained: A model with low-rank experts.
    rows: Examples with 'inputs' and 'targets', of which one in four is held
      out.
    rank: Rank of the LoRA; None keeps num_experts * rank.
    measure: The `measure_fn` of the model.

  Raises:
    errors.UserError: If the experts are no LoRAs, there is one row, or there
      is no vocabulary.
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
  return Collapsed(sites, params, losses, *map(len, split(rows)))


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
  end = [vocabulary.eos_id]
  ends = {'inputs': end if trained.inputs_end else [], 'targets': end}
  ids = {
      key: [[*vocabulary.encode(row[key]), *last][:_MAX_LENGTH] for row in rows]
      for key, last in ends.items()
  }
  # Few different lengths make few compilations.
  lengths = {
      key: -(-max(map(len, x)) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
      for key, x in ids.items()
  }
  dataset = tf.data.Dataset.from_generator(
      lambda: (
          {'inputs': inputs, 'targets': targets}
          for inputs, targets in zip(ids['inputs'], ids['targets'], strict=True)
      ),
      output_signature={key: tf.TensorSpec([None], tf.int32) for key in ids},
  )
  dataset = converters.of_model(trained.model)(dataset, lengths)
  batches = []
  for batch in dataset.batch(_BATCH_SIZE).as_numpy_iterator():
    fill = _BATCH_SIZE - len(batch['decoder_target_tokens'])
    padding = ((0, fill), (0, 0))
    batches.append({k: np.pad(x, padding) for k, x in batch.items()})
  return batches
