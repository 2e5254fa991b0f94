# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers that describe what routers do; all of them are ours.

A `load` holds, for one site, the mean combine weight that each expert gets
over the valid tokens of each task: `<float>[num_tasks, num_experts]`.
Rows need not sum to one (capacity drops, gates that are no softmax); they
are normalised here. A row without any weight, or with NaN, has no answer:
NaN.
"""

import numpy as np

DEAD_SHARE = 0.01


def normalize(load: np.ndarray) -> np.ndarray:
  """Divides each row by its sum.

  Args:
    load: non-negative weights, `<float>[..., num_experts]`.

  Returns:
    `<float64>[..., num_experts]`; rows that sum to zero or hold NaN are NaN.
  """
  load = np.asarray(load, np.float64)
  total = load.sum(axis=-1, keepdims=True)
  return load / np.where(total > 0, total, np.nan)


def entropy(probabilities: np.ndarray) -> np.ndarray:
  """Shannon entropy over the last axis, in nats (0 log 0 = 0).

  Args:
    probabilities: `<float>[..., num_experts]`.

  Returns:
    `<float64>[...]`.
  """
  p = np.asarray(probabilities, np.float64)
  return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1) + 0.0


def normalized_entropy(load: np.ndarray) -> np.ndarray:
  """Entropy of the expert distribution divided by log(num_experts).

  This is the entropy of the mean load, so 1 says that all experts are used
  equally often, not that each token is undecided.

  Args:
    load: `<float>[..., num_experts]`.

  Returns:
    `<float64>[...]` in [0, 1]; NaN where there is one expert only.
  """
  num_experts = np.shape(load)[-1]
  if num_experts < 2:
    return np.full(np.shape(load)[:-1], np.nan)
  return entropy(normalize(load)) / np.log(num_experts)


def mutual_information(load: np.ndarray) -> float:
  """Mutual information between task and expert, every task weighted equally.

  I(task; expert) = H(mean over tasks of p(expert | task))
                    - mean over tasks of H(p(expert | task)),
  for a token of a task drawn uniformly and an expert drawn by its combine
  weight. Tasks whose row is NaN or empty are left out.

  Args:
    load: `<float>[num_tasks, num_experts]`.

  Returns:
    Bits, from 0 (tasks share the experts alike) to
    `mutual_information_limit`; NaN with fewer than two usable tasks.
  """
  p = normalize(load)
  p = p[np.isfinite(p).all(axis=-1)]
  if len(p) < 2:
    return float('nan')
  nats = entropy(p.mean(axis=0)) - entropy(p).mean()
  return max(float(nats / np.log(2)), 0.0)


def mutual_information_limit(num_tasks: int, num_experts: int) -> float:
  """The largest value `mutual_information` can take, in bits."""
  return float(np.log2(min(num_tasks, num_experts)))


def dead_experts(
    load: np.ndarray, share: float = DEAD_SHARE
) -> tuple[int, ...]:
  """Experts that no task uses.

  Args:
    load: `<float>[num_tasks, num_experts]`.
    share: an expert is dead when for every task it gets less than this
      share of the uniform load 1 / num_experts.

  Returns:
    Their indices, ascending. Empty when no row is usable.
  """
  p = normalize(load)
  p = p[np.isfinite(p).all(axis=-1)]
  if not len(p):
    return ()
  dead = p.max(axis=0) < share / p.shape[-1]
  return tuple(int(i) for i in np.flatnonzero(dead))
