# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the partition of the parameters and of optimizers by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_peft.core import trainable
from tests import refusals

PARAMS = {
    'encoder/query/kernel': jnp.ones((2, 3)),
    'encoder/query/adapter/lora_a': jnp.ones((1, 2, 4)),
    'encoder/query/adapter/router/kernel': jnp.ones((2, 5)),
}
PATHS = list(PARAMS)


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('encoder/query/adapter/lora_a', True),
        ('decoder/decoder/mlp/wo/adapter/router/kernel', True),
        ('encoder/query/kernel', False),
        ('encoder/adapter_norm/scale', False),
        ('adapter/lora_a', True),  # Of a network that is one layer.
        ('kernel', False),
    ],
)
def test_adapters_are_known_by_their_scope(path, expected):
  assert trainable.is_adapter(path) is expected


def test_every_parameter_is_in_exactly_one_part():
  trained, frozen = trainable.split(PARAMS)
  assert sorted([*trained, *frozen]) == sorted(PARAMS)
  assert list(frozen) == ['encoder/query/kernel']
  # 1 * 2 * 4 of lora_a and 2 * 5 of the router.
  assert trainable.num_params(trained) == 18
  routers, _ = trainable.split(PARAMS, '.*/router/.*')
  assert list(routers) == ['encoder/query/adapter/router/kernel']


def test_nothing_to_train_is_an_error():
  with refusals.refused('TRAINABLE_REGEX', '.*/lora_c', PATHS[0]):
    trainable.split(PARAMS, '.*/lora_c')


def test_flatten_and_unflatten_are_inverse():
  assert trainable.flatten(trainable.unflatten(PARAMS)).keys() == PARAMS.keys()


def test_optimizers_by_path_take_the_first_rule():
  trained, _ = trainable.split(PARAMS)
  optimizer = trainable.by_path((
      ('.*/router/.*', optax.sgd(0.0)),
      ('.*', optax.sgd(0.5)),
  ))
  grads = {name: jnp.ones_like(x) for name, x in trained.items()}
  updates, _ = optimizer.update(grads, optimizer.init(trained), trained)
  np.testing.assert_array_equal(
      updates['encoder/query/adapter/router/kernel'], 0.0
  )
  np.testing.assert_array_equal(updates['encoder/query/adapter/lora_a'], -0.5)


def test_of_two_equal_rules_the_first_decides():
  trained, _ = trainable.split(PARAMS)
  optimizer = trainable.by_path((('.*', optax.sgd(0.5)), ('.*', optax.sgd(9))))
  grads = {name: jnp.ones_like(x) for name, x in trained.items()}
  state = optimizer.init(trained)
  updates, _ = optimizer.update(grads, state, trained)
  for update in updates.values():
    np.testing.assert_array_equal(update, -0.5)
  # The expressions are keys of checkpoints.
  assert list(state.inner_states) == ['.*']


def test_weight_decay_leaves_the_number_of_a_layer_alone():
  layer = 'encoder/encoder/query/adapter/layer_index'
  params = {layer: jnp.arange(4.0), PATHS[1]: jnp.ones((1, 2, 4))}
  optimizer = trainable.by_path((('.*', optax.adamw(0.1, weight_decay=5.0)),))
  state = optimizer.init(params)
  # It has its moments all the same: the layout is that of older checkpoints.
  assert {x.shape for x in jax.tree.leaves(state)} >= {(4,), (1, 2, 4)}
  for _ in range(3):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(params[layer], [0.0, 1.0, 2.0, 3.0])
  assert float(params[PATHS[1]].max()) < 0.2  # (1 - 0.1 * 5) ** 3


@pytest.mark.parametrize(
    ('path', 'constant'),
    [
        ('encoder/encoder/query/adapter/layer_index', True),
        ('encoder/layer_index', False),
        ('encoder/encoder/query/adapter/router/layer_index', False),
    ],
)
def test_only_the_index_of_an_adapter_is_a_constant(path, constant):
  assert trainable.is_constant(path) is constant


def test_a_parameter_without_a_rule_is_an_error():
  optimizer = trainable.by_path((('.*/router/.*', optax.sgd(1.0)),))
  with refusals.refused('trainable.by_path.rules', 'lora_a'):
    optimizer.init(trainable.split(PARAMS)[0])


def test_layers_of_a_scan_are_taken_apart():
  array = np.arange(24).reshape(4, 3, 2)
  path = 'encoder/encoder/mlp/wo/kernel'
  found = trainable.by_layer(path, array, axis=1)
  assert list(found) == [f'encoder/layers_{i}/mlp/wo/kernel' for i in range(3)]
  for i, layer in enumerate(found.values()):
    np.testing.assert_array_equal(layer, array[:, i])


@pytest.mark.parametrize(
    'path', ['encoder/layers_0/mlp/wo/kernel', 'decoder/logits_dense/kernel']
)
def test_what_no_scan_has_stacked_stays_whole(path):
  array = np.ones((4, 3, 2))
  assert trainable.by_layer(path, array, axis=1) == {path: array}
