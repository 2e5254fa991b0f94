# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers that describe what routers do; all of them are ours.

A `load` holds, for one site, the mean combine weight that each expert gets
over the valid tokens of each task: `<float>[num_tasks, num_experts]`.
Rows need not sum to one (capacity drops, gates that are no softmax); they
are normalized here. A row without any weight, or with NaN, has no answer:
NaN.
"""

import numpy as np

DEAD_SHARE = 0.01
COLLAPSE_SHARE = 0.1


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


def effective_experts(load: np.ndarray) -> np.ndarray:
  """exp of the entropy of the load: how many experts share the tokens.

  Args:
    load: `<float>[..., num_experts]`.

  Returns:
    `<float64>[...]` from 1 to num_experts.
  """
  return np.exp(entropy(normalize(load)))


def is_collapsed(load: np.ndarray, selected: float) -> bool:
  """Whether all tokens together use hardly more experts than one of them.

  That is `effective_experts(load) < k + COLLAPSE_SHARE * (num_experts - k)`
  with k the experts that a token selects, or 1 where it is given all of them
  and only the weights decide. So a router that sends every token to the same
  k experts has collapsed, and one that gives them all alike has not.

  Args:
    load: Mean weights over many tokens, `<float>[num_experts]`.
    selected: Mean number of experts with a weight, for one token.
  """
  num_experts = np.shape(load)[-1]
  k = selected if selected < num_experts - 0.5 else 1.0
  limit = k + COLLAPSE_SHARE * (num_experts - k)
  return bool(num_experts > 1 and effective_experts(load) < limit)


def drift(before: np.ndarray, after: np.ndarray) -> float:
  """Mean total variation distance of two distributions over experts.

  Half the sum of absolute differences, averaged over tokens: 0 if every token
  keeps its weights, 1 if every token has moved to other experts altogether.

  Args:
    before: Weights of the same tokens, `<float>[tokens, num_experts]`.
    after: `<float>[tokens, num_experts]`.

  Returns:
    NaN if no token has weights in both.
  """
  distance = np.abs(normalize(before) - normalize(after)).sum(axis=-1) / 2
  distance = distance[np.isfinite(distance)]
  return float(distance.mean()) if distance.size else float('nan')


def mutual_information(load: np.ndarray) -> float:
  """Mutual information between task and expert, every task weighted equally.

  I(task; expert) = H(mean over tasks of p(expert | task))
                    - mean over tasks of H(p(expert | task)),
  for a token of a task drawn uniformly and an expert drawn by its combine
  weight. Tasks whose row is NaN or empty are left out.

  Args:
    load: `<float>[num_tasks, num_experts]`.

  Returns:
    Nats, from 0 (tasks share the experts alike) to
    `mutual_information_limit`; NaN with fewer than two usable tasks. Finitely
    many rows leave more than 0 by chance: see `permuted_information`.
  """
  p = normalize(load)
  p = p[np.isfinite(p).all(axis=-1)]
  if len(p) < 2:
    return float('nan')
  nats = entropy(p.mean(axis=0)) - entropy(p).mean()
  return max(float(nats), 0.0)


def permuted_information(
    loads: np.ndarray, tasks: np.ndarray, permutations: int, seed: int = 0
) -> np.ndarray:
  """Mutual information that is left when rows are given random tasks.

  Rows are permuted and not tokens: the tokens of a row are not independent.

  Args:
    loads: Summed weights of each row, `<float>[rows, num_experts]`.
    tasks: Index of the task of each row, `<int>[rows]`.
    permutations: How many.
    seed: Seed of the permutations.

  Returns:
    Nats, `<float64>[permutations]`.
  """
  random = np.random.default_rng(seed)
  members = np.eye(tasks.max() + 1)[tasks].T
  return np.array([
      mutual_information(random.permutation(members, axis=1) @ loads)
      for _ in range(permutations)
  ])


def mutual_information_limit(num_tasks: int, num_experts: int) -> float:
  """The largest value `mutual_information` can take, in nats."""
  return float(np.log(min(num_tasks, num_experts)))


def dead_experts(
    load: np.ndarray, share: float = DEAD_SHARE
) -> tuple[int, ...]:
  """Experts that no task uses.

  Args:
    load: `<float>[num_tasks, num_experts]`.
    share: An expert is dead when for every task it gets less than this
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
