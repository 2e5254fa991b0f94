# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Removes experts from a trained run, and measures what that costs."""

from collections.abc import Mapping
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import id_scores
from moe_peft.core import partitioning
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.experts import ablation
from moe_peft.methods import expert_choice
from moe_peft.methods import xlora
from moe_peft.runs import config_file
from moe_peft.runs import run_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from moe_peft.training import train_step

Params = Mapping[str, Any]

# Nats by which the losses of the pruned and the masked model may differ, which
# is rounding only.
_TOLERANCE = 1e-3


def choose(
    scores: Mapping[str, np.ndarray], keep: int
) -> dict[str, np.ndarray]:
  """The experts of each site whose removal costs most, ascending indices.

  Scores are of single removals: that two experts may stand in for one another
  is not in them.
  """
  return {
      site: np.sort(np.argsort(-values, kind='stable')[:keep])
      for site, values in scores.items()
  }


def slice_params(
    params: Params, shapes: Params, kept: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Takes the kept experts out of flat parameters.

  The axis of the experts is the one that the smaller model has shorter; several
  distributions beside each other (methods/mode.py) are cut one by one.

  Args:
    params: Parameters of the whole model.
    shapes: Shapes of the smaller model: anything with a `shape`, by path.
    kept: Indices by site.

  Raises:
    errors.UserError: For a parameter that differs in another way.
  """
  sliced = {}
  for path, value in params.items():
    value, shape = np.asarray(value), tuple(shapes[path].shape)
    if value.shape != shape:
      site = path.partition(f'/{sites.ADAPTER_SCOPE}/')[0]
      axes = [i for i, n in enumerate(shape) if n != value.shape[i]]
      parts = shape[axes[0]] // max(len(kept.get(site, ())), 1)
      if len(axes) != 1 or not parts or value.shape[axes[0]] % parts:
        raise _cannot_be_pruned(f'{path} is {value.shape}, then {shape}.')
      index = np.arange(value.shape[axes[0]]).reshape(parts, -1)[:, kept[site]]
      value = np.take(value, index.ravel(), axis=axes[0])
    sliced[path] = value
  return sliced


def _cannot_be_pruned(why: str) -> errors.UserError:
  return errors.UserError(f'{why} Such a run cannot be pruned.', where='--keep')


def check_keep(num_experts: int, keep: int) -> None:
  """Checks that so many experts can be kept.

  Raises:
    errors.UserError: If not.
  """
  if not 1 < keep < num_experts:
    raise errors.UserError(
        f'{keep} is not more than 1, where a router begins, and less than the '
        f'{num_experts} experts of the run.', '--keep',
    )


def configure(keep: int) -> None:
  """Parses the configuration of the run anew, with fewer experts.

  Raises:
    errors.UserError: If there is no macro for their number.
  """
  macros = gin_files.macros()
  if 'NUM_EXPERTS' not in macros:
    raise errors.UserError(
        'The configuration of the run has no such macro; methods whose numbers '
        'of experts differ by layer cannot be pruned.', 'NUM_EXPERTS',
    )
  bindings = [f'NUM_EXPERTS={keep}']
  if 'PARAM_BUDGET' in macros:  # It would choose another rank.
    bindings.append('PARAM_BUDGET=None')
  gin_files.load_again(*bindings)


def check_routers(routers: Mapping[str, Any], keep: int) -> int:
  """Returns the number of experts that all sites have.

  Raises:
    errors.UserError: If they differ, or a router selects more than are kept.
  """
  numbers = {router.num_experts for router in routers.values()}
  if len(numbers) > 1:
    raise _cannot_be_pruned(f'Sites have {sorted(numbers)} experts.')
  for site, router in routers.items():
    select = router.select
    if isinstance(router.scores, xlora.ClassifierScores):
      raise _cannot_be_pruned(
          f'The weights at {site} are made by a classifier for all layers.'
      )
    if isinstance(select, selection.TopK) and select.k > keep:
      raise errors.UserError(
          f'The router at {site} selects {select.k} experts for every token, '
          f'more than {keep}.',
          where='--keep',
          remedy=f'Keep at least {select.k}.',
      )
    if isinstance(router.scores, id_scores.ExpertOfId):
      raise _cannot_be_pruned(f'Each expert at {site} is that of an id.')
    if isinstance(select, expert_choice.ChooseTokens):
      raise _cannot_be_pruned(
          f'The selection {type(select).__name__} of the router at {site} '
          'depends on the number of experts.'
      )
  return numbers.pop()


@dataclasses.dataclass(frozen=True)
class Pruned:
  """What pruning did.

  Attributes:
    kept: Indices of the experts by site.
    before: Loss of each task with all experts, nats per target token.
    after: The same with those that are kept.
    num_params: Trainable parameters of the pruned run.
  """

  kept: Mapping[str, np.ndarray]
  before: Mapping[str, float]
  after: Mapping[str, float]
  num_params: int


def write(
    setup: experiment_lib.Setup,
    params: Params,
    step: int,
    scores: Mapping[str, np.ndarray],
    batches: ablation.Batches,
    keep: int,
    out: Path,
) -> Pruned:
  """Writes a run with fewer experts.

  Args:
    setup: The whole run.
    params: Its flat parameters.
    step: Their step.
    scores: Worth of each expert by site, `Ablation.scores()`.
    batches: Batches on which losses are measured, model features by task.
    keep: Experts that stay at each site.
    out: MODEL_DIR of the new run.

  Raises:
    errors.UserError: If the method cannot be pruned.
  """
  model, mesh = setup.experiment.model, setup.mesh
  routers = ablation.routers(model, params, next(iter(batches.values())))
  num_experts = check_routers(routers, keep)
  kept = choose(scores, keep)
  masks = {
      site: np.isin(np.arange(num_experts), index)[None]
      for site, index in kept.items()
  }
  everything = {site: np.ones_like(mask) for site, mask in masks.items()}
  before = _losses(model, params, batches, everything, mesh)
  masked = _losses(model, params, batches, masks, mesh)
  configure(keep)
  smaller = experiment_lib.prepare(
      dataclasses.replace(run.build(), model_dir=str(out))
  )
  shapes = {**smaller.frozen, **smaller.trainable}
  pruned = slice_params(params, shapes, kept)
  for path in smaller.frozen:
    if params[path].shape != shapes[path].shape:
      raise _cannot_be_pruned(
          f'{path} does not train, so it is in no checkpoint and a smaller one '
          'would be drawn anew.'
      )
  after = _losses(smaller.experiment.model, pruned, batches, {}, mesh)
  _check_equal(after, masked)
  _save(smaller, pruned, step, out)
  return Pruned(kept, before, after, loop.count_params(smaller)[0])


def _check_equal(
    pruned: Mapping[str, float], masked: Mapping[str, float]
) -> None:
  """Checks that a pruned model has the losses of the masked one."""
  worst = max(abs(pruned[task] - masked[task]) for task in pruned)
  if not worst < _TOLERANCE:
    raise _cannot_be_pruned(
        f'It differs from the masked model by {worst:.2g} nats: the method '
        'depends on the number of experts in another way.'
    )


def _losses(model, params, batches, masks, mesh) -> dict[str, float]:
  masks = masks or {'': np.ones((1, 1), bool)}  # No site: all.
  loss = ablation.loss_fn(model, mesh)
  with partitioning.use_mesh(mesh):
    return {
        task: float(loss(params, dict(batch), masks)[0])
        for task, batch in batches.items()
    }


def _save(setup, params, step, out) -> None:
  """Writes configuration and checkpoint; the optimizer starts fresh."""
  placed = {
      path: jax.device_put(params[path], setup.shardings[path])
      for path in setup.trainable
  }
  setup = dataclasses.replace(setup, trainable=placed)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    state = train_step.init_state(setup)
    state = state.replace(step=jax.device_put(
        np.int32(step), state.step.sharding
    ))
    checkpointer.save(step, state, loop.train_data(setup.experiment))
    checkpointer.wait()
  atomic.write(out / config_file.FILE, gin.config_str())


def summary(
    info: run_file.RunInfo, pruned: Pruned, source: Path
) -> run_file.RunInfo:
  """run.json of a pruned run: that of the whole one, and what was done."""
  frozen = (info.num_params_total or 0) - (info.num_params_trainable or 0)
  return dataclasses.replace(
      info,
      num_params_trainable=pruned.num_params,
      num_params_total=frozen + pruned.num_params,
      pruned=run_file.Pruning(
          str(source), pruned.kept, pruned.before, pruned.after
      ),
  )
