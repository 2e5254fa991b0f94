# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who is used: selections turn a router's logits into gates over experts.

The order is that of the papers: probabilities, dropout on them, selection,
normalization; capacity (capacity.py) comes after. `Soft` uses every expert,
`TopK` the k best. Selections of a single method stand in the method's file.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
import warnings

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import tokens as tokens_lib

# The logit of an expert that is not there.
_MASKED = -1e9
# With more experts it is quicker to take the best one k times than to compare
# each with each.
_MOST_COMPARED = 32


@dataclasses.dataclass(frozen=True)
class Context:
  """What a selection knows besides the logits. Length counts routed units.

  Attributes:
    tokens: What is known of the tokens.
    valid: Returns <bool>[batch, length], False for padding; an error if
      nothing says which tokens are padding.
    active: <bool>[num_experts], False for experts that do not exist at this
      layer, or None.
    training: Whether there is randomness, a 'dropout' rng.
    per_row: Whether all tokens of a row share their logits.
  """

  tokens: tokens_lib.Tokens
  valid: Callable[[], jax.Array]
  active: jax.Array | None
  training: bool
  per_row: bool


@dataclasses.dataclass(frozen=True)
class Decision:
  """What a selection decides.

  Attributes:
    probs: <float32>[batch, length, num_experts].
    gates: <float32>[batch, length, num_experts], 0 where an expert is not
      used.
    selected: <bool>[batch, length, num_experts], or None if every expert is
      used.
    scores: <float32>[batch, length, num_experts], who goes first where experts
      are full.
  """

  probs: jax.Array
  gates: jax.Array
  selected: jax.Array | None
  scores: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft:
  """Every expert, weighted by its probability (MoV, MoLoRA, 2309.05444).

  Attributes:
    normalize: Divides the weights of the experts that are used by their sum.
      The released code of MoV and MoLoRA does not.
    dropout: Rate of dropout on the probabilities before the selection, with
      the usual scaling of what is left (SiRA's expert dropout, 2311.09179).
  """

  normalize: bool = False
  dropout: float = 0.0

  # Whether a capacity holds at evaluation too, and who goes first where experts
  # are full, if the capacity does not say it.
  limits_evaluation = False
  priority = None

  def check(self, router: nn.Module) -> None:
    """Raises errors.UserError if the router cannot select so."""
    self._check_dropout()
    if router.capacity is not None:
      raise errors.UserError(
          'A capacity limits a selection, but soft routing gives every token '
          'to every expert.',
          where='capacity.Capacity',
          remedy='Bind the router to @selection.TopK(), or its capacity to '
          'None.',
      )

  def _check_dropout(self) -> None:
    if not 0.0 <= self.dropout < 1.0:
      raise errors.UserError(
          f'The dropout {self.dropout} of the gates must be at least 0 and '
          'below 1.',
          where='GATE_DROPOUT',
      )

  def most_selected(self, num_experts: int) -> int:
    """Returns the most experts that a token uses."""
    return num_experts

  def __call__(
      self, router: nn.Module, logits: jax.Array, context: Context
  ) -> Decision:
    """Decides.

    Args:
      router: The router that parameters and randomness belong to.
      logits: <float32>[batch, length, n], num_experts logits, and more where
        the scores of a method give more.
      context: What else is known.
    """
    probs = self.drop(router, self.probs(router, logits, context), context)
    return self.decide(probs, probs, None)

  def probs(
      self, router: nn.Module, logits: jax.Array, context: Context
  ) -> jax.Array:
    """Returns the probabilities, <float32>[batch, length, num_experts]."""
    del router
    if context.active is None:
      return jax.nn.softmax(logits)
    logits = mask(logits, context.active)
    # Scores mask experts too: where none is left, a softmax would be uniform.
    return jnp.where(logits > _MASKED, jax.nn.softmax(logits), 0.0)

  def drop(
      self, router: nn.Module, probs: jax.Array, context: Context
  ) -> jax.Array:
    """Drops experts while training, for whole rows that share their logits."""
    if not (context.training and self.dropout):
      return probs
    return nn.Dropout(
        self.dropout,
        broadcast_dims=(1,) if context.per_row else (),
        deterministic=False,
        parent=router,
        name='Dropout_0',
    )(probs)

  def decide(
      self,
      probs: jax.Array,
      gates: jax.Array,
      selected: jax.Array | None,
      scores: jax.Array | None = None,
  ) -> Decision:
    """Returns the decision, the gates of unused experts 0 and normalized."""
    if selected is not None:
      # A dropped or inactive expert takes no slot.
      selected &= gates > 0
      gates = jnp.where(selected, gates, 0.0)
    if self.normalize:
      gates /= gates.sum(axis=-1, keepdims=True) + 1e-9
    scores = probs if scores is None else scores
    return Decision(probs, gates, selected, scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Soft):
  """The k experts of the highest probability (Switch, arXiv 2101.03961).

  Attributes:
    k: Number of selected experts.
  """

  k: int | None = None

  def check(self, router):
    self._check_dropout()
    if not isinstance(self.k, int) or not 1 <= self.k <= router.num_experts:
      raise errors.UserError(
          f'NUM_SELECTED_EXPERTS = {self.k} is not between 1 and NUM_EXPERTS = '
          f'{router.num_experts}.',
          where='NUM_SELECTED_EXPERTS',
          remedy='Select fewer experts, or have more.',
      )
    learned = router.scores.learned and router.num_experts > 1
    if self.k == 1 and self.normalize and learned:
      warnings.warn(
          'NUM_SELECTED_EXPERTS = 1 with NORMALIZE = True: the weight of the '
          'one selected expert is always 1, so the router has no gradient but '
          'that of its auxiliary losses. Bind NORMALIZE = False.',
          stacklevel=2,
      )

  def most_selected(self, num_experts):
    return self.k

  def num_selected(self, context: Context) -> Any:
    """Returns k, a number or a traced <int32>[]; schedules override it."""
    del context
    return self.k

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    selected = select_top_k(probs, self.num_selected(context))
    return self.decide(probs, probs, selected)


def mask(logits: jax.Array, active: jax.Array | None) -> jax.Array:
  """Returns the logits, very low for experts that are not active."""
  return logits if active is None else jnp.where(active, logits, _MASKED)


def select_top_k(scores: jax.Array, k: Any) -> jax.Array:
  """Returns the <bool>[..., num_experts] mask of the k best experts.

  Args:
    scores: <float>[..., num_experts]; of equal scores the first wins.
    k: A number, or a traced <int32>[].
  """
  scores = jax.lax.stop_gradient(scores)
  # Never sorted: a sort would gather a batch that is sharded.
  if scores.shape[-1] > _MOST_COMPARED and isinstance(k, int):
    return _best_in_turn(scores, k)
  return ahead(scores).sum(axis=-1) < k


def ahead(scores: jax.Array) -> jax.Array:
  """Returns which experts are better than an expert, without a sort.

  Args:
    scores: <float>[..., num_experts]; of equal scores the first is better.

  Returns:
    <bool>[..., num_experts, num_experts]; `[..., e, f]` says that f is better
    than e.
  """
  mine, other = scores[..., :, None], scores[..., None, :]
  expert = jnp.arange(scores.shape[-1])
  return (other > mine) | ((other == mine) & (expert < expert[:, None]))


def _best_in_turn(scores, k):
  """As `select_top_k`: the best, then the best of the others, k times."""
  expert = jnp.arange(scores.shape[-1])
  left = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
  for _ in range(min(k, scores.shape[-1])):
    best = left == left.max(axis=-1, keepdims=True)
    first = jnp.where(best, expert, scores.shape[-1]).min(-1, keepdims=True)
    left = jnp.where(expert == first, -jnp.inf, left)
  return left == -jnp.inf
