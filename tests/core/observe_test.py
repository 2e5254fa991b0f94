# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums of routing, by site."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import observe
from moe_peft.methods import mola
from moe_peft.models import t5

BATCH = {
    'encoder_input_tokens': np.array([[5, 6, 0]]),
    'decoder_target_tokens': np.array([[7, 0]]),
}


def _sown(path, *passes):
  nested = {'combine_weights': tuple(jnp.asarray(x, 'float32') for x in passes)}
  for name in reversed([*path.split('/'), 'adapter']):
    nested = {name: nested}
  return nested


def test_sums_of_a_row():
  weights = np.array([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]],
                      [[0, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1]]], np.float32)
  valid = np.array([[True, True, False], [True, True, False]])
  sums = observe.row_sums(weights, valid)
  np.testing.assert_allclose(
      sums['load'], [[1.5, 0.5, 0, 0], [0.25] * 4], atol=1e-6
  )
  np.testing.assert_allclose(sums['entropy'], [0.5, 1.0], atol=1e-6)
  np.testing.assert_array_equal(sums['selected'], [3, 4])
  np.testing.assert_array_equal(sums['left_behind'], [0, 1])
  np.testing.assert_array_equal(sums['tokens'], [2, 2])


def test_the_entropy_does_not_depend_on_the_sum():
  weights = np.array([[[0.1, 0.3]], [[0.25, 0.75]]], np.float32)
  entropy = observe.row_sums(weights, np.ones((2, 1), bool))['entropy']
  np.testing.assert_allclose(entropy[0], entropy[1], rtol=1e-5)


@pytest.mark.parametrize(
    ('site', 'tokens'),
    [
        ('encoder/layers_0/mlp/wo', 2),
        ('decoder/layers_0/mlp/wo', 1),
        ('decoder/layers_0/encoder_decoder_attention/query', 1),
        ('decoder/layers_0/encoder_decoder_attention/key', 2),
    ],
)
def test_padding_of_the_stack_that_a_site_reads(site, tokens):
  length = 3 if tokens == 2 else 2
  sown = _sown(site, np.ones((1, length, 2)))
  assert observe.batch_sums(sown, BATCH)[site]['tokens'] == tokens


def test_two_passes_count_as_their_mean():
  site = 'decoder/layers_0/mlp/wo'
  sown = _sown(site, [[[1, 0], [1, 0]]], [[[0, 1], [0, 1]]])
  np.testing.assert_allclose(
      observe.batch_sums(sown, BATCH)[site]['load'], [0.5, 0.5]
  )


@pytest.mark.slow
def test_layers_of_a_scan_have_the_experts_that_they_have():
  """MoLA in a scan is shown as it is outside of one."""

  def sums(scan):
    config = t5.T5Config(
        vocab_size=8, emb_dim=6, num_heads=1, head_dim=4, mlp_dim=5,
        num_encoder_layers=2, num_decoder_layers=2, scan_layers=scan,
    )
    module = inject.AdaptedModule(t5.Transformer(config), (inject.OutputRule(
        '.*encoder/.*/wo', functools.partial(
            mola.by_depth, experts_by_depth=(2, 3)
        )
    ),))
    ids = jnp.array([[5, 6, 0]])
    run = lambda key: module.init_with_output(
        key, ids, ids, ids, enable_dropout=False
    )[1]['params']
    params = run(jax.random.key(0))
    _, found = module.apply(
        {'params': params}, ids, ids, ids, enable_dropout=False,
        mutable=['routing'],
    )
    batch = {'encoder_input_tokens': ids, 'decoder_target_tokens': ids}
    return {
        site: observe.row_sums(*sown)
        for site, sown in observe.combine_weights(
            found['routing'], batch
        ).items()
    }

  for index, (scanned, unrolled) in enumerate(
      zip(sums(True).items(), sums(False).items(), strict=True)
  ):
    (site, got), (want_site, want) = scanned, unrolled
    assert site == want_site
    load = observe.existing(got['load'])
    assert load.shape == want['load'].shape == (1, (2, 3)[index])
    assert load.sum() == pytest.approx(2)  # Two tokens.
    np.testing.assert_array_equal(got['selected'], want['selected'])
    assert 0 < got['entropy'][0] <= 2 + 1e-5


@pytest.mark.slow
def test_layers_of_a_scan_have_names_of_their_own():
  weights = np.zeros((2, 1, 2, 2))
  weights[0, ..., 0] = weights[1, ..., 1] = 1
  sums = observe.batch_sums(_sown('decoder/decoder/mlp/wo', weights), BATCH)
  np.testing.assert_array_equal(sums['decoder/layers_0/mlp/wo']['load'], [1, 0])
  np.testing.assert_array_equal(sums['decoder/layers_1/mlp/wo']['load'], [0, 1])
