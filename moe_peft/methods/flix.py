# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""FLix (arXiv 2402.17934): each feature of the data has a LoRA of its own.

  outputs + alpha / rank
            * sum_{e in features(id)} (inputs @ lora_a[e]) @ lora_b[e]

A feature is a language, a task: whatever several data sets share. FEATURES says
of each id which ones it has; an example adds their updates, with weights 1 that
nothing learns. So a pair of features that was not trained works where both
were, as one more id. From the paper: the sum, and that features are dropped
while training. Ours, as its text could not be read: rank and alpha as of
MoLoRA, one rank for all features, a rate of 0.1, no scaling of what is left,
and that each layer drops features for itself.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import id_scores
from moe_peft.core import selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScores(id_scores.ExpertOfId):
  """1 for the features of an id, and 0 for the others. Nothing is learned.

  Attributes:
    features: Names of the features of each id, in the order of the ids.
  """

  features: Sequence[Sequence[str]]

  @property
  def names(self) -> list[str]:
    """All features, in the order in which they are named."""
    return list(dict.fromkeys(x for of_id in self.features for x in of_id))

  def check(self, router):
    if len(self.features) != self.num_ids:
      raise errors.UserError(
          f'FEATURES has {len(self.features)} entries, and EXAMPLE_IDS '
          f'{self.num_ids}.', 'FEATURES', 'Name the features of each id.',
      )
    if len(self.names) != router.num_experts:
      raise errors.UserError(
          f'FEATURES has {len(self.names)} features, and NUM_EXPERTS = '
          f'{router.num_experts}; each has an expert of its own.',
          'NUM_EXPERTS', f'Set it to {len(self.names)}.',
      )

  def logits(self, router, inputs, tokens, product):
    has = [[name in of_id for name in self.names] for of_id in self.features]
    mine = id_scores.one_hot(router, tokens, self.num_ids)
    return mine @ jnp.array(has, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added(selection.Soft):
  """Weights that are the scores themselves, and need not sum to 1.

  `dropout` drops the features of a row while training, without scaling.
  """

  def probs(self, router, logits, context):
    del router
    if context.active is None:
      return logits
    return jnp.where(context.active, logits, 0.0)

  def drop(self, router, probs, context):
    if not (context.training and self.dropout):
      return probs
    key = router.make_rng('dropout')
    shape = (probs.shape[0], 1, probs.shape[-1])
    return probs * jax.random.bernoulli(key, 1.0 - self.dropout, shape)
