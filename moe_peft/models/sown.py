# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What adapters sow while a model runs: their losses, and what to log."""

from collections.abc import Mapping
from typing import Any

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp

from moe_peft.core import losses
from moe_peft.core import observe

COLLECTIONS = ('intermediates', observe.COLLECTION)


def read(
    collections: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    factors: Mapping[str, float],
) -> tuple[jax.Array, dict[str, Any]]:
  """The loss of all adapters, and CLU metrics, which are merged over batches.

  Args:
    collections: Those of `COLLECTIONS`, as the model returned them.
    batch: Model features, `<int32>[batch, length]`.
    factors: Weights of the losses by name.

  Returns:
    The weighed sum, a scalar, and the mean over sites and batches of every sown
    name; in `routing`, for each site, the means over its tokens of what
    `observe.batch_sums` adds up.

  Raises:
    errors.UserError: If a loss with a nonzero factor was not sown.
  """
  found = losses.collect(collections.get('intermediates', {}))
  sums = observe.batch_sums(collections.get(observe.COLLECTION, {}), batch)
  metrics: dict[str, Any] = {
      name: clu_metrics.Average(value, jnp.ones(()))
      for name, value in found.items()
  }
  metrics['routing'] = {
      site: {
          name: clu_metrics.Average(total, of_site['tokens'])
          for name, total in of_site.items()
          if name != 'tokens'
      }
      for site, of_site in sums.items()
  }
  return losses.total(found, factors), metrics
