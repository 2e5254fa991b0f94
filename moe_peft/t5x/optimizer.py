# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X optimizers that know the adapters only.

Frozen parameters have no optimizer state and come out of a step bit-equal.
`AdapterOptimizer` takes any Optax optimizer, Adafactor included; learning
rates are Optax schedules, since T5X gives Optax none of its own. T5X's own
Adafactor goes into `AdapterMultiOptimizer`, with `trainable_filter` and
`adapter_factor_rules` (gin/runs/t5x_adafactor.gin).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from t5x import adafactor
from t5x import metrics as t5x_metrics
from t5x import optimizers
from t5x import trainer

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.core import trainable

_FROZEN = 'frozen'


class AdapterOptimizer(optimizers.OptaxWrapper):
  """Optax optimizers for the trained parameters, chosen by path."""

  def __init__(
      self,
      rules: Sequence[tuple[str, optax.GradientTransformation]],
      trainable_regex: str = trainable.ADAPTER_REGEX,
      gradients: optax.GradientTransformation | None = None,
      updates: optax.GradientTransformation | None = None,
  ):
    """Makes the optimizer.

    Args:
      rules: Pairs (regular expression, optimizer). The first expression that
        matches a whole path decides.
      trainable_regex: A parameter is trained where the whole path matches.
      gradients: As of `trainable.by_path`, whose binding it takes.
      updates: The same.
    """
    self._rules = tuple(rules)
    self._trains = trainable.matcher(trainable_regex)
    self._trainable_regex = trainable_regex
    # The labels become parts of paths in checkpoints: no slashes.
    transforms = {f'rule_{i}': rule[1] for i, rule in enumerate(self._rules)}
    transforms[_FROZEN] = optax.set_to_zero()
    parts = trainable.partition(transforms, self._label)
    super().__init__(trainable.between(gradients, parts, updates))

  def init_state(self, params: Any) -> Any:
    """State of the trained parameters.

    Args:
      params: All parameters.

    Raises:
      errors.UserError: If nothing would be trained, or if no rule matches a
        parameter that is.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    trainable.split(
        {trainable.path_of(keys): leaf for keys, leaf in flat},
        self._trainable_regex,
    )
    return super().init_state(params)

  def apply_gradient(
      self, hyper_params: Any, params: Any, state: Any, grads: Any
  ) -> tuple[Any, Any]:
    """One step; see `t5x.optimizers.OptimizerDef`."""
    updated, after = super().apply_gradient(hyper_params, params, state, grads)

    def keep(keys, old, new):  # Adding a zero would turn -0.0 into 0.0.
      return new if self._trains(trainable.path_of(keys)) else old

    updated = jax.tree_util.tree_map_with_path(keep, params, updated)
    return _if_finite(grads, (params, state), (updated, after))

  def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
    """Logical axes of the state: moments lie as their parameters do.

    This works for every Optax state; T5X's own way needs a rule for each kind
    of state and has none for Adafactor.

    Args:
      optimizer: `t5x.optimizers.Optimizer` of shapes.
      param_logical_axes: Axis names of the parameters.
    """
    state = optimizer.state
    axes = partitioning.optimizer_layouts(
        self.optax_optimizer,
        state.param_states,
        optimizer.target,
        param_logical_axes,
        rest=None,
    )
    return optimizer.replace(
        state=state.replace(step=None, param_states=axes),
        target=param_logical_axes,
    )

  def _label(self, path: str) -> str:
    if not self._trains(path):
      return _FROZEN
    index, _ = trainable.first_match(
        self._rules, path, 'optimizer.AdapterOptimizer.rules'
    )
    return f'rule_{index}'


def check_trains_adapters(optimizer: Any) -> None:
  """Refuses optimizers of T5X's own files of runs, which train everything.

  Args:
    optimizer: The optimizer of a T5X model; None to evaluate.

  Raises:
    errors.UserError: It is neither an `AdapterOptimizer` nor a
      `MultiOptimizer`, or an Adafactor in it does not know the axes of
      adapters.
  """
  of_parts = isinstance(optimizer, optimizers.MultiOptimizer)
  if optimizer is not None and not (
      of_parts or isinstance(optimizer, AdapterOptimizer)
  ):
    raise errors.UserError(
        f'{type(optimizer).__name__} trains every parameter, the base too.',
        where='OPTIMIZER',
        remedy='Include gin/runs/t5x_finetune.gin, alone or with '
        'gin/runs/t5x_adafactor.gin, instead of a run file of T5X.',
    )
  for part in optimizer.sub_optimizers if of_parts else ():
    rules = getattr(part.hyper_params, 'logical_factor_rules', None)
    if rules is not None and 'expert' not in rules:
      raise errors.UserError(
          'Adafactor has no rule for the axis `expert` of adapters.',
          where='adafactor.Adafactor.logical_factor_rules',
          remedy='Bind @optimizer.adapter_factor_rules(), as '
          'gin/runs/t5x_adafactor.gin does.',
      )


class AdapterMultiOptimizer(optimizers.MultiOptimizer):
  """T5X's, for its own Adafactor; it skips steps that are not finite."""

  def apply_gradient(
      self, hyper_params: Any, params: Any, state: Any, grads: Any
  ) -> tuple[Any, Any]:
    """One step; see `t5x.optimizers.OptimizerDef`."""
    after = super().apply_gradient(hyper_params, params, state, grads)
    return _if_finite(grads, (params, state), after)


def _if_finite(
    grads: Any, before: tuple[Any, Any], after: tuple[Any, Any]
) -> tuple[Any, Any]:
  """Skips a step: it counts, and changes nothing else.

  A step is skipped if the gradient of what trains, or what it leads to, is not
  finite, as by the embedded engine.

  Args:
    grads: Gradients of all parameters.
    before: Parameters and state.
    after: The same after the step; frozen parameters are those of before.
  """
  (old_params, old_state), (new_params, new_state) = before, after
  changed = jax.tree.map(
      lambda grad, old, new: None if old is new else (grad, new),
      grads, old_params, new_params,
  )
  finite = jnp.isfinite(optax.global_norm(changed))
  kept = lambda new, old: new if new is old else jnp.where(finite, new, old)
  return jax.tree.map(kept, new_params, old_params), new_state.replace(
      param_states=jax.tree.map(
          kept, new_state.param_states, old_state.param_states
      )
  )


class SkippedSteps(trainer.WeightMetricsComputer):
  """Logs the share of steps that were skipped, as `skipped`.

  It stands where T5X has metrics of weights: losses do not tell, since those of
  the parameters that stay may be finite.
  """

  def compute_metrics(
      self, gradients: Any, old_train_state: Any, new_train_state: Any
  ) -> dict[str, t5x_metrics.AveragePerStep]:
    """One metric of a step.

    A step that is taken changes the state of the optimizer, a count or moments,
    if it has any and the gradient is not zero.
    """
    leaves = [
        jax.tree.leaves(x.param_states)
        for x in (old_train_state, new_train_state)
    ]
    same = [jnp.all(old == new) for old, new in zip(*leaves, strict=True)]
    skipped = jnp.stack(same).all() if same else jnp.zeros((), bool)
    skipped &= optax.global_norm(gradients) != 0
    return {
        'skipped': t5x_metrics.AveragePerStep.from_model_output(
            skipped.astype(jnp.float32)
        )
    }


def trainable_filter(
    trainable_regex: str = trainable.ADAPTER_REGEX,
) -> Callable[[str, Any], bool]:
  """Filter of `flax.traverse_util.ModelParamTraversal`.

  Args:
    trainable_regex: A parameter is chosen where the whole path matches.
  """
  matches = trainable.matcher(trainable_regex)
  # Flax's paths begin with a slash.
  return lambda path, _: matches(path.removeprefix('/'))


def adapter_factor_rules() -> Mapping[str, adafactor.FactorDim]:
  """T5X's factor rules for Adafactor, and those of the axes of adapters.

  Each expert is scaled and clipped by itself. Nothing of an adapter with an
  axis `rank` is factored: an axis as short as that would save no memory.
  """
  return dict(adafactor.standard_logical_factor_rules()) | {
      'expert': adafactor.FactorDim.BATCH,
      'rank': adafactor.FactorDim.NONE,
      'unmodeled': adafactor.FactorDim.NONE,
  }
