# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The floor of a training step's work: what no method can do without.

That is the forward pass of the frozen network, the gradients of its
activations, and three times the adapters' own forward pass. A step above it
computes what it need not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import experiments
from benchmarks import timing
from moe_peft.core import trainable
from moe_peft.models import language_model
from moe_peft.training import experiment as experiment_lib

EMBEDDING = 'token_embedder/embedding'


def frozen_gflop(experiment: experiment_lib.Experiment) -> float:
  """Forward pass and input gradients of the bare network, by XLA's count.

  The gradient of the embedding is the input gradient of everything above it.
  That is a little more than adapters need, which are on outputs: the lowest
  layer's queries, keys and values need no gradients of their inputs.

  Args:
    experiment: The one that gin has just built, without scanned layers.

  Returns:
    GFLOP of a step's whole batch.
  """
  model = experiment.model.without_adapters()
  params, batch = abstract(experiment, model)
  embedding = {EMBEDDING: params.pop(EMBEDDING)}
  compiled = (
      jax.jit(input_gradients(model)).lower(embedding, params, batch).compile()
  )
  return timing.facts(compiled)['gflop']


def input_gradients(
    model: language_model.LanguageModel,
) -> Callable[..., dict[str, jax.Array]]:
  """The forward pass and the gradients of activations.

  Args:
    model: Without adapters.

  Returns:
    A function of flat parameters, the embedding alone and all others, and of a
    batch, that gives the gradient of the former.
  """

  def loss(embedding, others, batch):
    merged = trainable.unflatten({**others, **embedding})
    return model.loss(merged, batch)[0]

  return jax.grad(loss)


def adapter_gflop(experiment: experiment_lib.Experiment) -> float:
  """Forward pass of the adapters: that of the network with and without them.

  Before XLA's optimizations, which takes no compilation.

  Args:
    experiment: As for `frozen_gflop`.

  Returns:
    GFLOP of a step's whole batch.
  """

  def forward(model):
    params, batch = abstract(experiment, model)
    lowered = jax.jit(
        lambda params: model.apply(trainable.unflatten(params), batch)[0]
    ).lower(params)
    return lowered.cost_analysis()['flops'] / 1e9

  model = experiment.model
  return forward(model) - forward(model.without_adapters())


def abstract(
    experiment: experiment_lib.Experiment, model: language_model.LanguageModel
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.Array]]:
  """What a step of a model is compiled for.

  Args:
    experiment: Has the lengths and the number of rows.
    model: Its model, or that without adapters.

  Returns:
    (shapes of the flat parameters, batch <int32>[rows, length]).
  """
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), experiment.task_feature_lengths)
  )
  batch = experiments.random_batch(experiment)
  return (
      trainable.flatten(variables['params']),
      {name: jnp.asarray(value) for name, value in batch.items()},
  )
