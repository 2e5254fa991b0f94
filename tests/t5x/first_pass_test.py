# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""X-LoRA in T5X's models, beside those of the embedded engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import xlora_test as ours
from tests.models import example_ids_test as rows

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


def t5x_model(model, **options):
  from moe_peft.t5x import models

  if hasattr(model, 'bos_id'):
    return models.AdaptedDecoderOnlyModel(
        model.module, ours.VOCABULARY, optimizer_def=None, **options
    )
  return models.AdaptedEncoderDecoderModel(
      model.module, ours.VOCABULARY, ours.VOCABULARY, optimizer_def=None,
      **options,
  )


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_both_engines_say_the_same(kind, scan):
  model = ours.model(kind, scan)
  params, theirs = ours.filled(model), t5x_model(model)
  batch = rows.batch(kind, with_ids=False)
  np.testing.assert_allclose(
      jax.jit(theirs.score_batch)(params, batch),
      jax.jit(model.score)(params, batch), rtol=1e-4,
  )
  generate = jax.jit(lambda params, batch: model.generate(
      params, model.prompts(batch)[:, :8], 4
  ))
  found = np.asarray(jax.jit(theirs.predict_batch)(params, batch))
  np.testing.assert_array_equal(found[:, :4], generate(params, batch))


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_samples_keep_what_a_first_pass_has_read(kind):
  """T5X repeats the rows of a cache, and moves them as beams do."""
  from t5x import decoding

  model = ours.model(kind)
  params, batch = ours.filled(model), rows.batch(kind, with_ids=False)
  one = t5x_model(model, decode_fn=decoding.temperature_sample)
  several = jax.jit(lambda params, batch: one.predict_batch_with_aux(
      params, batch, num_decodes=2, return_all_decodes=True,
      decoder_params={'temperature': 0.0},
  )[0])
  found = several(params, batch)
  best = jax.jit(one.predict_batch)(params, batch)
  for number in range(2):
    np.testing.assert_array_equal(found[:, number], best)
  assert jnp.ptp(best) > 0
