# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is checked: an adapted network, how it is called, and a batch."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from moe_peft.core import adapted_sites
from moe_peft.core import initial_values
from moe_peft.core import inject
from moe_peft.core import sites
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]
Metrics = Mapping[str, Array]
_LEAST_NOISE = 1e-3
# (module, nested parameters, batch, training) to outputs <float>[batch, length,
# ...] and what adapters sow, averaged as `losses.collect` does.
Call = Callable[[nn.Module, Params, Batch, bool], tuple[Array, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """An adapted network, and how it is called.

  Attributes:
    module: The adapted network.
    init: `init(module, key)` makes all variables of a fresh one.
    call: Runs a network, this one or another that has its signature. Dropout
      draws from the same key in every call.
    loss: `loss(module, params, batch)` is what training makes small.
    batch: <int32>[batch, length] features by name, some rows with padding.
    reads: Name of the feature that the outputs are made of, token by token.
    padding: Name of the feature that is 0 at padding; may be the same one.
    packed: A batch whose rows hold several examples, or None.
    trainable_regex: Which parameters train.
    loss_factors: Factors of the losses that adapters sow.
    strict: Whether the network without adapters must hold what is asked of the
      adapted one. False for one of which nothing is known: it may look ahead.
    experiment: The experiment, small; None where a network alone is checked.
    sizes: What was made small, a sentence.
  """

  module: inject.AdaptedModule
  init: Callable[[nn.Module, Array], Mapping[str, Any]]
  call: Call
  loss: Callable[[nn.Module, Params, Batch], Array]
  batch: Batch
  reads: str
  padding: str
  packed: Batch | None = None
  trainable_regex: str = trainable.ADAPTER_REGEX
  loss_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  strict: bool = True
  experiment: experiment_lib.Experiment | None = None
  sizes: str = ''

  @functools.cached_property
  def variables(self) -> Mapping[str, Any]:
    """All variables of a fresh network."""
    return self.fresh(self.module)

  @functools.cached_property
  def params(self) -> dict[str, Array]:
    """Flat parameters of a fresh network."""
    return trainable.flatten(self.variables['params'])

  @functools.cached_property
  def moved(self) -> dict[str, Array]:
    """Flat parameters whose adapters are away from their initial values."""
    return moved(self.params, self.noise)

  @functools.cached_property
  def noise(self) -> float:
    """How much adapters are moved: outputs change, by half at most.

    What noise does grows with widths and with alpha / rank. Networks amplify
    rounding with it, until that cannot be told from an error. What routers do
    alone, whose noise has one size, is no reason to move experts less.
    """
    still, _ = self.evaluate(moved(self.params, 0.0), self.batch)
    size = 1.0
    while size > _LEAST_NOISE:
      got, _ = self.evaluate(moved(self.params, size), self.batch)
      if not np.linalg.norm(got - still) > 0.5 * np.linalg.norm(still):
        break
      size /= 2
    return size

  @functools.cached_property
  def base_params(self) -> dict[str, Array]:
    """Flat parameters of the network without adapters."""
    return {
        k: x for k, x in self.params.items() if not trainable.is_adapter(k)
    }

  @functools.cached_property
  def evaluate(self) -> Callable[[Params, Batch], tuple[Array, Metrics]]:
    """The network in evaluation, of flat parameters and a batch."""
    return self.compiled(self.module, training=False)

  @functools.cached_property
  def train(self) -> Callable[[Params, Batch], tuple[Array, Metrics]]:
    """The network in training."""
    return self.compiled(self.module, training=True)

  @functools.cached_property
  def base(self) -> Callable[[Params, Batch], tuple[Array, Metrics]]:
    """The network without adapters in evaluation."""
    return self.compiled(self.module.module, training=False)

  @functools.cached_property
  def sites(self) -> dict[str, adapted_sites.TracedSite]:
    """The adapters and routers of an evaluation, by the path of the layer."""
    call = lambda params, batch: self.call(
        self.module, trainable.unflatten(params), batch, False
    )
    _, traced = adapted_sites.trace(call, self.params, self.batch)
    return traced

  @property
  def trains(self) -> bool:
    """Whether anything does; some banks are only scored, by TRAIN_STEPS = 0."""
    return any(map(trainable.matcher(self.trainable_regex), self.params)) and (
        self.experiment is None or self.experiment.train_steps > 0
    )

  @property
  def has_adapters(self) -> bool:
    return bool(self.module.rules)

  @property
  def has_routers(self) -> bool:
    return any(site.router is not None for site in self.sites.values())

  @property
  def is_limited(self) -> bool:
    """Whether experts may be full in an evaluation."""
    routings = [x.routing for x in self.sites.values() if x.routing is not None]
    return any(x.expert_capacity < x.group_size for x in routings)

  def fresh(self, module: nn.Module) -> Mapping[str, Any]:
    """All variables of a fresh network, this one or another."""
    # Draws of one generator and shape are compiled once for all networks; a
    # program of all draws of one takes longer to compile than all the others.
    key = jax.random.key(0, impl='unsafe_rbg')
    variables = self.init(module, key)
    params = trainable.flatten(variables['params'])
    if initial_values.wanted(params):
      init = functools.partial(self.init, module)
      _, adapters = adapted_sites.trace(init, key)
      params.update(initial_values.from_base(adapters, params))
    return {**variables, 'params': trainable.unflatten(params)}

  def compiled(
      self, module: nn.Module, training: bool
  ) -> Callable[[Params, Batch], tuple[Array, Metrics]]:
    """A network as a new compiled function of flat parameters and a batch."""
    return jax.jit(
        lambda params, batch: self.call(
            module, trainable.unflatten(params), batch, training
        )
    )

  def shapes(self, module: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the flat parameters of a network."""
    made = jax.eval_shape(
        functools.partial(self.init, module), jax.random.key(0)
    )
    return trainable.flatten(made['params'])

  def real(self, batch: Batch) -> np.ndarray:
    """Which outputs are not of padding, <bool>[batch, length]."""
    return np.asarray(batch[self.padding] != 0)


def moved(params: Params, size: float = 1.0) -> dict[str, Array]:
  """Flat parameters with noise on the adapters; the base as it is.

  Args:
    params: Flat parameters.
    size: A factor of the noise on what is no router; `Subject.noise`.
  """
  result = dict(params)
  for path in sorted(params):
    if trainable.is_adapter(path) and not trainable.is_constant(path):
      scale = 0.3 if '/router/' in path else 0.1 * size
      rng = np.random.default_rng(list(path.encode()))
      noise = rng.normal(0.0, scale, params[path].shape)
      result[path] = params[path] + noise.astype(np.float32)
  return result


def with_adapters(
    module: inject.AdaptedModule,
    change: Callable[[nn.Module, str], nn.Module],
) -> inject.AdaptedModule:
  """The network with other adapters on the same layers.

  Args:
    module: The adapted network.
    change: Called as `change(adapter, name)` for the adapter of every layer;
      returns a module of that name which takes its place.
  """

  def changed(rule):
    make = rule.adapter_factory
    # Without a name the adapter does not take the place of the other.
    return dataclasses.replace(
        rule,
        adapter_factory=lambda site, name: change(
            make(site=site, name=None), name
        ),
    )

  return module.clone(rules=tuple(changed(rule) for rule in module.rules))


def adapter_scope(layer: str) -> str:
  """Path of the adapter of a layer, with the slash at its end."""
  return f'{layer}/{sites.ADAPTER_SCOPE}/'
