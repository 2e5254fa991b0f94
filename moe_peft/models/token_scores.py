# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What losses and scores need of logits, without all logits at once.

The logits of 8 rows of 1,024 tokens over 32,000 words are a gigabyte, and their
gradient another. Losses need four numbers of each token. Where logits are
large they are made for a part of the row at a time, and made again in the
backward pass: one more product with the output layer, and the same numbers.
"""

from collections.abc import Callable

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from moe_peft.core import inject
from moe_peft.models import parts

# Logits that a device makes at a time, and how many it may keep.
PART, MOST = 2**24, 2**26

Head = Callable[[jax.Array], jax.Array]


@struct.dataclass
class TokenScores:
  """Scores of each token, `<float32>[batch, n]`.

  Attributes:
    target: Logit of the target.
    log_z: Logarithm of the sum of exponentials of all logits.
    mean: Mean of all logits.
    correct: 1 where no logit is larger than the target's, else 0.
  """

  target: jax.Array
  log_z: jax.Array
  mean: jax.Array
  correct: jax.Array

  @property
  def loss(self) -> jax.Array:
    """The cross entropy, in nats."""
    return self.log_z - self.target


def of_logits(logits: jax.Array, targets: jax.Array) -> TokenScores:
  """The scores of logits.

  Args:
    logits: `<float>[batch, n, vocab]`.
    targets: `<int32>[batch, n]`.
  """
  logits = logits.astype(jnp.float32)
  target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  # A maximum is at hand in log_z; argmax would cost a CPU a tenth of a step.
  correct = target >= logits.max(-1)
  return TokenScores(
      target,
      jax.nn.logsumexp(logits, axis=-1),
      logits.mean(-1),
      correct.astype(jnp.float32),
  )


def of_features(
    head: Head, features: jax.Array, targets: jax.Array, vocab_size: int
) -> TokenScores:
  """The scores of features, in parts where the logits are large.

  Args:
    head: A function of `[batch, m, embed]` to `<float>[batch, m, vocab]`.
    features: `[batch, n, embed]`.
    targets: `<int32>[batch, n]`.
    vocab_size: Number of logits of a token.
  """
  batch, length = targets.shape
  logits = parts.on_a_device(batch * length * vocab_size)
  if logits <= MOST:
    return of_logits(head(features), targets)
  return parts.run(
      lambda features, targets: of_logits(head(features), targets),
      length, -(-logits // PART), (features, 1), (targets, 1),
  )


def logits_are_read(module: nn.Module) -> bool:
  """Whether a rule of an adapted network reads the logits of all tokens."""
  default = inject.OutputRule.after_call
  return isinstance(module, inject.AdaptedModule) and any(
      type(rule).after_call is not default for rule in module.rules
  )


def are_given_by(module: nn.Module) -> bool:
  """Whether a network takes `score_targets` and then returns `TokenScores`."""
  if logits_are_read(module):
    return False
  if isinstance(module, inject.AdaptedModule):
    module = module.module
  return getattr(type(module), 'SCORES_TARGETS', False)
