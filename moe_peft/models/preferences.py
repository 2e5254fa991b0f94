# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The loss of preferences: DPO (arXiv 2305.18290).

  reward(y) = beta (log pi(y) - log ref(y))
  margin = reward(chosen) - reward(rejected)
  loss = -(1 - smoothing) log sigmoid(margin) - smoothing log sigmoid(-margin)

Logarithms are summed over the tokens of an answer. The smoothing, 0 in the
paper, is that of "conservative DPO": the probability that a label is wrong.
"""

import jax


def loss_of_margin(
    margin: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """The loss of each pair, `<float32>[...]`; log 2 where the margin is 0.

  Args:
    margin: `<float32>[...]`, the chosen answer's reward minus the other's.
    label_smoothing: Probability that a label is wrong, below 0.5.
  """
  right = (1 - label_smoothing) * jax.nn.log_sigmoid(margin)
  return -right - label_smoothing * jax.nn.log_sigmoid(-margin)


def rewards(
    policy: jax.Array, reference: jax.Array, beta: float
) -> jax.Array:
  """The rewards of answers, `<float32>[...]`, in nats times beta.

  Args:
    policy: Log-likelihoods by the model that trains.
    reference: Those by the model it is compared with; no gradient passes.
    beta: How strongly the policy is held to the reference.
  """
  return beta * (policy - jax.lax.stop_gradient(reference))
