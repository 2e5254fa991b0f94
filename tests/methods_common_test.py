# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold for every method, as a table over their gin files."""

import dataclasses
import functools
import pathlib
from typing import Any

from flax import traverse_util
from flax.linen import partitioning
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import trainable
from tests import tiny_network
from tests.refusals import refused

ROOT = pathlib.Path(__file__).parents[1]
BINDINGS = """
from __gin__ import dynamic_registration
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import trainable
inject.AdaptedModule.rules = %ADAPTER_RULES
losses.total.factors = %LOSS_FACTORS
trainable.split.trainable_regex = %TRAINABLE_REGEX
"""


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    file: Name of the gin file.
    macros: Small sizes, by macro.
    identity: Tolerance of the identity at initialization; None: not an
      identity, as the released code.
  """

  file: str
  macros: dict[str, Any]
  identity: float | None = 0.0


# Few sites, to compile less: one with heads, one whose input is the MLP's.
SITES = {'SITES': '.*/(key|wo)'}
VECTORS = {'SITES': '.*/(key|act)', 'NUM_EXPERTS': 3}
SMALL = {**SITES, 'NUM_EXPERTS': 3, 'RANK': 2}
BLOCK = {**SMALL, 'SITES': '.*/wo', 'ATTENTION_SITES': '.*/key'}
DEPTH = {**SITES, 'EXPERTS_BY_DEPTH': (2, 3), 'RANK': 2}
ENCODER = {**SMALL, 'SITES': '(.*/)?encoder/.*/(key|wo)'}
TABLE = {
    'lora': Row('lora', {**SITES, 'RANK': 2}),
    'ia3': Row('ia3', {'SITES': '.*/(key|act)'}),
    'mov': Row('mov', VECTORS),
    'mov_wo': Row('mov_wo', {'NUM_EXPERTS': 3}),
    'mov_topk': Row('mov_topk', VECTORS),
    'mov_topk, released': Row(
        'mov_topk',
        {**VECTORS, 'NORMALIZE': False, 'RESIDUAL': False},
        identity=None,
    ),
    'molora': Row('molora', SMALL),
    'molora_topk': Row('molora_topk', SMALL),
    'molora_topk, released': Row(
        'molora_topk', {**SMALL, 'NORMALIZE': False}
    ),
    'molora_sentence': Row('molora_sentence', SMALL),
    'sira': Row(
        'sira', {**SMALL, 'NUM_SELECTED_EXPERTS': 2, 'CAPACITY_FACTOR': 1.5}
    ),
    'smear': Row('smear', SMALL),
    'smoe_dropout': Row(
        'smoe_dropout',
        {
            **SMALL, 'FIRST_K': 1, 'NUM_SELECTED_EXPERTS': 2,
            'GROWTH_STEPS': None,
        },
    ),
    'adamix': Row('adamix', SMALL),
    'moelora': Row('moelora', SMALL),
    'adamole': Row('adamole', SMALL),
    'hydralora': Row('hydralora', SMALL),
    'mosld': Row('mosld', {**DEPTH, 'EXPERTS_BY_DEPTH': (3, 2)}),
    'smora': Row(
        'smora', {**SITES, 'NUM_EXPERTS': 6, 'NUM_SELECTED_EXPERTS': 2}
    ),
    'mode': Row('mode', SMALL),
    'mola': Row('mola', DEPTH),
    'mixlora': Row('mixlora', BLOCK),
    'bottleneck': Row('bottleneck', SMALL),
    'expert_choice': Row('expert_choice', ENCODER),
}


# The others run with -m slow.
FAST = ('lora', 'ia3', 'mov', 'molora', 'sira', 'moelora')
NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in TABLE
]


def load(row, **macros):
  gin.clear_config()
  lines = [f'{k} = {v!r}' for k, v in {**row.macros, **macros}.items()]
  gin.parse_config_files_and_bindings(
      [str(ROOT / 'gin' / 'methods' / f'{row.file}.gin')],
      [*BINDINGS.strip().splitlines(), *lines],
  )


def assert_close(got, want):
  """Equal to float32 rounding at the size of the largest output."""
  scale = np.abs(want).max()
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * max(scale, 5.0))


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def moved(params):
  """Adapters away from their initial values; the base as it is."""
  flat = flatten(params)
  result = dict(flat)
  for i, (path, x) in enumerate(sorted(flat.items())):
    if trainable.is_adapter(path) and not path.endswith('layer_index'):
      key = jax.random.fold_in(jax.random.key(7), i)
      result[path] = x + 0.3 * jax.random.normal(key, x.shape)
  return traverse_util.unflatten_dict(result, sep='/')


class Case:
  """A method in a network, with its compiled functions."""

  def __init__(self, row):
    self.row = row
    self.network = self.adapted()
    init = jax.jit(self.network.init)
    self.variables = init(jax.random.key(0), *tiny_network.tokens())
    self.params = self.variables['params']
    self.moved = moved(self.params)
    self.evaluate = self.evaluation_of(self.network)
    self.train = jax.jit(functools.partial(self.run, self.network, True))
    self.grad = jax.jit(
        jax.value_and_grad(
            functools.partial(self.loss, self.network), has_aux=True
        )
    )

  def adapted(self, **options):
    base = tiny_network.Network(tiny_network.Config(**options))
    return gin.get_configurable(inject.AdaptedModule)(module=base)

  def evaluation_of(self, network):
    return jax.jit(functools.partial(self.run, network, False))

  def run(self, network, training, params, *tokens):
    rngs = {'dropout': jax.random.key(1)} if training else {}
    outputs, state = network.apply(
        {'params': params}, *tokens, rngs=rngs, mutable=['intermediates']
    )
    return outputs, losses.collect(state.get('intermediates', {}))

  def loss(self, network, params, *tokens):
    outputs, metrics = self.run(network, True, params, *tokens)
    target = jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape)
    loss = jnp.sum(outputs * target)
    return loss + gin.get_configurable(losses.total)(metrics), outputs


@pytest.fixture(scope='module', params=NAMES)
def case(request):
  row = TABLE[request.param]
  load(row)
  yield Case(row)
  gin.clear_config()


def base_of(params):
  flat = flatten(params)
  return {k: v for k, v in flat.items() if not trainable.is_adapter(k)}


def test_parameters(case):
  params, axes = flatten(case.params), flatten(case.variables['params_axes'])
  adapters = {k: v for k, v in params.items() if trainable.is_adapter(k)}
  assert adapters
  for path, x in adapters.items():
    assert len(axes[f'{path}_axes'].names) == x.ndim, path
    assert x.dtype == jnp.float32
    assert 'expert' not in path
  base = tiny_network.Network()
  want = jax.jit(base.init)(jax.random.key(0), *tiny_network.tokens())
  want = flatten(want['params'])
  jax.tree.map(np.testing.assert_array_equal, base_of(case.params), want)


def test_identity_at_initialisation(case):
  tokens = tiny_network.tokens()
  outputs, _ = case.evaluate(case.params, *tokens)
  base = traverse_util.unflatten_dict(base_of(case.params), sep='/')
  frozen = jax.jit(tiny_network.Network().apply)({'params': base}, *tokens)
  if case.row.identity is None:
    assert np.abs(outputs - frozen).max() > 0.01
  else:
    np.testing.assert_allclose(outputs, frozen, rtol=0, atol=case.row.identity)
  changed, _ = case.evaluate(case.moved, *tokens)
  assert np.abs(changed - frozen).max() > 1e-3


def test_evaluation_is_deterministic(case):
  first, _ = case.evaluate(case.moved, *tiny_network.tokens())
  second, _ = case.evaluate(case.moved, *tiny_network.tokens())
  np.testing.assert_array_equal(first, second)


def test_padding_changes_nothing(case):
  encoder, decoder, target = tiny_network.tokens()
  other = decoder.at[0, 4:].set(11)
  want, want_metrics = case.evaluate(case.moved, encoder, decoder, target)
  got, got_metrics = case.evaluate(case.moved, encoder, other, target)
  np.testing.assert_array_equal(got[0, :4], want[0, :4])
  np.testing.assert_array_equal(got[1:], want[1:])
  assert np.abs(got[0, 4:] - want[0, 4:]).max() > 0
  for name in want_metrics:
    if name != 'contrastive_loss':  # Looks at used experts only; see its test.
      np.testing.assert_allclose(
          got_metrics[name], want_metrics[name], rtol=1e-6
      )


def test_batch_mates_change_nothing(case):
  encoder, decoder, target = tiny_network.tokens()
  want, _ = case.evaluate(case.moved, encoder, decoder, target)
  got, _ = case.evaluate(
      case.moved, encoder.at[1].set(5), decoder.at[1].set(3), target
  )
  np.testing.assert_array_equal(got[jnp.array([0, 2])], want[jnp.array([0, 2])])


def test_future_tokens_change_nothing(case):
  # While training: with capacity limits, where there are any.
  encoder, decoder, target = tiny_network.tokens()
  want, _ = case.train(case.moved, encoder, decoder, target)
  for position in (2, 5):
    later = decoder.at[:, position:].set(1 + decoder[:, position:] % 19)
    got, _ = case.train(case.moved, encoder, later, target)
    decoded = np.abs(got - want)[..., 8:]
    assert decoded[:, :position].max() == 0
    assert decoded[:, position:].max() > 0


def test_jit_equals_eager(case):
  want, _ = case.evaluate(case.moved, *tiny_network.tokens())
  got, _ = case.run(case.network, False, case.moved, *tiny_network.tokens())
  assert_close(got, want)


def test_bfloat16(case):
  want, _ = case.evaluate(case.moved, *tiny_network.tokens())
  network = case.adapted(dtype=jnp.bfloat16)
  got, _ = case.evaluation_of(network)(case.moved, *tiny_network.tokens())
  assert got.dtype == jnp.bfloat16
  error = np.abs(np.asarray(got, np.float32) - want).mean()
  assert error < 0.05 * np.abs(want).mean()


def test_gradients_and_one_step(case):
  tokens = tiny_network.tokens()
  (loss, _), grads = case.grad(case.moved, *tokens)
  assert np.isfinite(loss)
  split = gin.get_configurable(trainable.split)
  trained, _ = split(flatten(grads))
  for path, grad in trained.items():
    assert np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 0, path
  left = {k: v for k, v in flatten(grads).items() if k not in trained}
  for path, grad in left.items():
    if trainable.is_adapter(path):  # Frozen parts of an adapter.
      assert np.abs(grad).max() == 0, path
  params = flatten(case.moved)
  stepped = {**params, **{k: params[k] - 0.1 * g for k, g in trained.items()}}
  for path in base_of(case.moved):
    np.testing.assert_array_equal(stepped[path], params[path])


def scanned_params(params, num_layers=2):
  """Stacks unrolled layers; arrays with fewer experts are padded."""
  flat, stacked = flatten(params), {}
  for path, x in flat.items():
    if '/layers_0/' in path:
      parts = [
          flat[path.replace('/layers_0/', f'/layers_{i}/')]
          for i in range(num_layers)
      ]
      shape = np.max([p.shape for p in parts], axis=0)
      padded = [
          np.pad(p, [(0, n - m) for n, m in zip(shape, p.shape, strict=True)])
          for p in parts
      ]
      stacked[path.replace('/layers_0/', '/layers/')] = np.stack(padded, 1)
    elif '/layers_' not in path:
      stacked[path] = x
  return stacked


def test_scan_equals_unrolled(case):
  tokens = tiny_network.tokens()
  want, want_metrics = case.evaluate(case.moved, *tokens)
  network = case.adapted(scan=True, remat=True)
  init = jax.jit(network.init)(jax.random.key(0), *tokens)['params']
  params = scanned_params(case.moved)
  for path, x in flatten(init).items():
    if path.endswith('layer_index'):
      np.testing.assert_array_equal(np.ravel(x), [0, 1])
      params[path] = x
    assert params[path].shape == x.shape, path
  params = traverse_util.unflatten_dict(params, sep='/')
  got, metrics = case.evaluation_of(network)(params, *tokens)
  assert_close(got, want)
  if case.row.file not in ('mola', 'mosld'):  # Entropy counts masked experts.
    assert metrics.keys() == want_metrics.keys()
    for name, value in want_metrics.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)


def test_remat_equals_none(case):
  tokens = tiny_network.tokens()
  (want, _), want_grads = case.grad(case.moved, *tokens)
  network = case.adapted(remat=True)
  grad = jax.value_and_grad(functools.partial(case.loss, network), has_aux=True)
  (got, _), grads = jax.jit(grad)(case.moved, *tokens)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for path, value in flatten(want_grads).items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(
        flatten(grads)[path], value, rtol=0, atol=1e-4 * scale + 1e-6
    )


def test_permuting_experts_changes_nothing(case):
  if case.row.file == 'mode':
    pytest.skip('its router kernel is laid out by rank; see tests/methods')
  axes = flatten(partitioning.get_axis_names(case.variables['params_axes']))

  def permute(path, x):
    if not trainable.is_adapter(path) or path.endswith('layer_index'):
      return x
    # Experts lie along these axes, in adapters and in routers.
    names = enumerate(axes[path])
    return jnp.flip(x, [i for i, n in names if n in ('expert', 'unmodeled')])

  flat = {path: permute(path, x) for path, x in flatten(case.moved).items()}
  params = traverse_util.unflatten_dict(flat, sep='/')
  want, _ = case.evaluate(case.moved, *tiny_network.tokens())
  got, _ = case.evaluate(params, *tiny_network.tokens())
  assert_close(got, want)


def test_every_gin_file_is_in_the_table():
  files = {path.stem for path in (ROOT / 'gin' / 'methods').glob('*.gin')}
  assert files == {row.file for row in TABLE.values()} | {'full'}


def test_full_fine_tuning_trains_everything():
  load(Row('full', {}))
  base = tiny_network.Network()
  network = gin.get_configurable(inject.AdaptedModule)(module=base)
  params = jax.jit(network.init)(jax.random.key(0), *tiny_network.tokens())
  trained, frozen = gin.get_configurable(trainable.split)(
      flatten(params['params'])
  )
  assert trained and not frozen


def test_expert_choice_refuses_decoders():
  load(TABLE['expert_choice'], SITES='.*/decoder/.*/wo|decoder/.*/wo')
  base = tiny_network.Network()
  network = gin.get_configurable(inject.AdaptedModule)(module=base)
  with refused('SITES'):
    network.init(jax.random.key(0), *tiny_network.tokens())
