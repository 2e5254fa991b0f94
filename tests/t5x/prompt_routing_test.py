# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Means over prompts in caches whose rows T5X repeats for several samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import decoder_test
from tests.models import prompt_routing_test as ours

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


def test_samples_know_their_prompt_outside_of_a_scan_too():
  from t5x import decoding

  from moe_peft.t5x import models

  vocabulary = decoder_test.Vocabulary()
  ids = decoder_test.tokens(2, 11).at[:, 0].set(0)
  batch = {
      'decoder_input_tokens': ids,
      'decoder_target_tokens': ids,
      'decoder_causal_attention': ours.mask(6, 4, length=11).astype(jnp.int32),
  }

  def sample(scan):
    params = ours.variables()['params']
    model = models.AdaptedDecoderOnlyModel(
        ours.adapted(ours.CONFIG.replace(scan_layers=scan)), vocabulary,
        optimizer_def=None, decode_fn=decoding.temperature_sample,
    )
    return jax.jit(lambda params, batch: model.predict_batch_with_aux(
        params, batch, num_decodes=2, return_all_decodes=True,
        decoder_params={'temperature': 0.0},
    )[0])(decoder_test.to_scan(params) if scan else params, batch)

  np.testing.assert_array_equal(sample(True), sample(False))
