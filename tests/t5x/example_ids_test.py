# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ids of examples in T5X's models, beside those of the embedded engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.data import converters
from tests.models import example_ids_test as ours

pytest.importorskip('t5x')
pytestmark = pytest.mark.t5x


def t5x_model(kind):
  from moe_peft.t5x import models

  if kind == 't5':
    return models.AdaptedEncoderDecoderModel(
        ours.network(kind), ours.VOCABULARY, ours.VOCABULARY,
        optimizer_def=None,
    )
  return models.AdaptedDecoderOnlyModel(
      ours.network(kind), ours.VOCABULARY, optimizer_def=None
  )


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_both_engines_say_the_same(kind):
  theirs, params = t5x_model(kind), ours.params(kind)
  for pack in (False, True):
    made = [
        list(converter(ours.dataset(), ours.LENGTHS).as_numpy_iterator())
        for converter in (
            theirs.FEATURE_CONVERTER_CLS(pack=pack),
            converters.of_model(ours.model(kind), pack),
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, *made)
    batch = jax.tree.map(lambda *x: jnp.stack(x), *made[0])
    score = jax.jit(ours.model(kind).score)
    np.testing.assert_allclose(
        jax.jit(theirs.score_batch)(params, batch), score(params, batch),
        rtol=1e-5,
    )
  batch = ours.batch(kind)
  generate = jax.jit(lambda params, batch: ours.model(kind).generate(
      params, ours.model(kind).prompts(batch)[:, :8], 4,
      example_ids=batch['example_ids'],
  ))
  # Two samples of each example, the best of which is returned.
  _, more = jax.jit(lambda params, batch: theirs.predict_batch_with_aux(
      params, batch, num_decodes=2, return_all_decodes=True
  ))(params, batch)
  assert np.isfinite(np.asarray(more['scores'])).all()
  one = jax.jit(theirs.predict_batch)(params, batch)
  np.testing.assert_array_equal(
      np.asarray(one)[:, :4], generate(params, batch)
  )
