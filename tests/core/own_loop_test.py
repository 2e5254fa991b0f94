# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`moe_peft.adapt`: every method file, on models and in loops of one's own."""

import dataclasses
import re

from flax import linen as nn
from flax import nnx
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moe_peft
from moe_peft import gin_methods
from moe_peft.core import adapted_sites
from moe_peft.core import inject
from moe_peft.core import own_loop
from moe_peft.core import tokens as tokens_lib
from moe_peft.core import trainable
from tests import methods_common_test as common
from tests import tiny_network
from tests.core import einsum_layers_test
from tests.refusals import refused


class Mlp(nn.Module):
  """A decoder of three lines, called by names of its own."""

  @nn.compact
  def __call__(self, ids):
    x = nn.Embed(11, 8, name='embed')(ids)
    x = x + nn.Dense(8, name='wo')(nn.gelu(nn.Dense(16, name='wi')(x)))
    return nn.Dense(11, name='head')(x)


IDS = jnp.asarray(np.random.default_rng(0).integers(1, 11, (4, 6)))


def adapted(method='molora', **options):
  return moe_peft.adapt(
      Mlp(), method, sites='wi|wo', describe_tokens=tokens_lib.all_real,
      **options,
  )


def traced(model, *tokens):
  """Shapes of the parameters; fields of all adapters and routers by site."""
  found, traced_sites = adapted_sites.trace(
      model.init, jax.random.key(0), *tokens
  )
  fields = lambda module: module and {
      field.name: getattr(module, field.name)
      for field in dataclasses.fields(module)
      if field.name not in ('parent', 'router_factory')
  }
  shapes = {k: x.shape for k, x in trainable.flatten(found['params']).items()}
  return shapes, {
      path: (type(site.adapter), fields(site.adapter), fields(site.router))
      for path, site in traced_sites.items()
  }


@pytest.mark.parametrize('name', common.NAMES)
def test_it_is_what_gin_makes_of_the_same_file(name):
  """Ranks and factors, routers with all their parts, what trains, losses."""
  row = common.TABLE[name]
  base, tokens = tiny_network.Network(), tiny_network.tokens()
  options = {k.lower(): v for k, v in row.macros.items()}
  ours = moe_peft.adapt(base, row.file, **options)
  shapes, of_sites = traced(ours.module, *tokens)

  common.load(row)
  by_gin = gin.get_configurable(inject.AdaptedModule)(module=base)
  assert (shapes, of_sites) == traced(by_gin, *tokens)
  trained, _ = gin.get_configurable(trainable.split)(
      {path: np.zeros(shape) for path, shape in shapes.items()}
  )
  changes = {path for path in trained if not trainable.is_constant(path)}
  assert changes == set(filter(ours.trains, shapes))
  factors = gin.query_parameter('%LOSS_FACTORS')
  assert factors.keys() == ours.loss_factors.keys()
  for name, factor in factors.items():  # Numbers, or macros by name.
    if not isinstance(factor, float):
      macro = factor.scoped_selector.split('/')[0]
      factor = gin.query_parameter(f'%{macro}')
    assert ours.loss_factors[name] == factor
  gin.clear_config()


def test_two_models_in_one_process_do_not_know_of_each_other():
  small, large = adapted(rank=2, num_experts=3), adapted('lora', rank=5)
  shapes = {}
  for name, one in (('small', small), ('large', large)):
    params = jax.eval_shape(one.module.init, jax.random.key(0), IDS)['params']
    flat = trainable.flatten(params)
    shapes[name] = flat['wi/adapter/lora_a'].shape
  assert shapes == {'small': (3, 8, 2), 'large': (1, 8, 5)}


def test_a_model_may_be_a_single_layer():
  one = moe_peft.adapt(
      nn.Dense(8), sites='.*', num_experts=3, rank=2,
      describe_tokens=tokens_lib.all_real,
  )
  params = one.module.init(jax.random.key(0), jnp.ones((2, 4, 8)))['params']
  trained, frozen = one.split(params)
  assert set(frozen) == {'kernel', 'bias'}
  assert set(trained) == {
      'adapter/lora_a', 'adapter/lora_b', 'adapter/router/kernel'
  }


@pytest.mark.slow
def test_the_mask_is_what_optax_takes():
  one = adapted()
  params = one.module.init(jax.random.key(0), IDS)['params']
  optimizer = optax.partition(
      {True: optax.sgd(0.5), False: optax.set_to_zero()}, one.mask
  )
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  trained, frozen = one.split(updates)
  assert all('/adapter/' in path for path in trained)
  assert all((x == -0.5).all() for x in trained.values())
  assert all((x == 0).all() for x in frozen.values())
  assert one.trains(('wi', 'adapter', 'lora_a'))
  assert not one.trains('wi/kernel')


def test_what_is_taken_out_of_the_kernel_does_not_decay():
  one = adapted('pissa', rank=2)
  params = one.module.init(jax.random.key(0), IDS)['params']
  params = jax.tree.map(jnp.ones_like, params)
  optimizer = optax.partition(
      {True: optax.adamw(0.1, weight_decay=1.0), False: optax.set_to_zero()},
      one.mask,
  )
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  moved = {k for k, x in trainable.flatten(updates).items() if x.any()}
  assert {path.split('/')[-1] for path in moved} == {'lora_a', 'lora_b'}
  trained, frozen = one.split(params)
  assert set(trained) == moved
  assert 'wi/adapter/frozen_a' in frozen


def test_a_loop_of_ones_own(tmp_path):
  """Thirty lines: a foreign model, Optax, the adapters saved alone."""
  one = adapted('molora_topk', num_experts=4, rank=2, aux_loss_factor=0.01)
  base = jax.jit(Mlp().init)(jax.random.key(1), IDS)['params']
  fresh = jax.jit(one.module.init)(jax.random.key(0), IDS)['params']
  trained, frozen = one.split(one.merge(fresh, base))
  optimizer = optax.adamw(1e-2)

  @jax.jit
  def step(trained, state, ids):
    def loss_fn(trained):
      logits, sown = one.module.apply(
          {'params': one.merge(frozen, trained)}, ids[:, :-1],
          mutable=['intermediates'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
          logits, ids[:, 1:]
      )
      return losses.mean() + one.auxiliary_loss(sown)

    loss, grads = jax.value_and_grad(loss_fn)(trained)
    updates, state = optimizer.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, loss

  state, seen = optimizer.init(trained), []
  for _ in range(20):
    trained, state, loss = step(trained, state, IDS)
    seen.append(float(loss))
  assert seen[-1] < seen[0]

  file = tmp_path / 'adapters.safetensors'
  one.save(one.merge(frozen, trained), file)
  again = one.load(fresh, file)
  logits = jax.jit(
      lambda trained: one.module.apply(
          {'params': one.merge(frozen, trained)}, IDS
      )
  )
  want, got = logits(trained), logits(one.split(again)[0])
  np.testing.assert_array_equal(got, want)


def test_under_nnx():
  one = adapted('lora', rank=2)
  model = nnx.bridge.ToNNX(one.module, rngs=nnx.Rngs(0)).lazy_init(IDS)
  trains = nnx.All(nnx.Param, lambda path, _: one.trains(path))
  optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=trains)

  @nnx.jit
  def step(model, optimizer, ids):
    def loss_fn(model):
      return optax.softmax_cross_entropy_with_integer_labels(
          model(ids[:, :-1]), ids[:, 1:]
      ).mean()

    argument = nnx.DiffState(0, trains)
    loss, grads = nnx.value_and_grad(loss_fn, argnums=argument)(model)
    optimizer.update(model, grads)
    return loss

  frozen = nnx.All(nnx.Param, nnx.Not(trains))
  before = jax.device_get(nnx.to_pure_dict(nnx.state(model, frozen)))
  seen = [float(step(model, optimizer, IDS)) for _ in range(10)]
  assert seen[-1] < seen[0]
  after = nnx.to_pure_dict(nnx.state(model, frozen))
  assert before
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_frozen_routers_are_saved_with_their_experts(tmp_path):
  options = dict(num_experts=3, first_k=1, num_selected_experts=2)
  one = adapted('smoe_dropout', growth_steps=None, **options)
  params = one.module.init(jax.random.key(0), IDS)['params']
  other = one.module.init(jax.random.key(9), IDS)['params']
  one.save(params, tmp_path / 'adapters')
  loaded = trainable.flatten(one.load(other, tmp_path / 'adapters'))
  for path, value in trainable.flatten(params).items():
    if trainable.is_adapter(path):
      np.testing.assert_array_equal(loaded[path], value)
  assert not one.trains('wi/adapter/router/kernel')


def test_what_is_wrong_is_named(tmp_path):
  with refused('method', 'molora'):
    adapted('moolora')
  with refused('ranks', 'rank'):
    adapted(ranks=3)
  with refused('rank', 0):
    adapted(rank=0)
  with refused('train_steps', 'TRAIN_STEPS'):
    adapted('smoe_dropout')
  with refused('SITES', 'wo'):
    moe_peft.adapt(Mlp(), 'lora', sites='w0').module.init(
        jax.random.key(0), IDS
    )
  one, file = adapted('lora', rank=2), tmp_path / 'adapters'
  params = one.module.init(jax.random.key(0), IDS)['params']
  with refused(file, 'No such file'):
    one.load(params, file)
  file.write_bytes(b'no tensors')
  with refused(file):
    one.load(params, file)
  one.save(params, file)
  other = adapted('lora', rank=3)
  params = other.module.init(jax.random.key(0), IDS)['params']
  with refused(file, 'lora_a', '(1, 8, 2)', '(1, 8, 3)'):
    other.load(params, file)


def test_a_method_file_of_ones_own(tmp_path):
  file = tmp_path / 'mine.gin'
  file.write_text(
      "include 'gin/methods/molora.gin'\nRANK = 3\nNUM_EXPERTS = 2\n"
  )
  method = gin_methods.MethodFile(str(file))
  assert method.value('RANK') == 3
  (rule,) = adapted(str(file)).module.rules
  assert rule.adapter_factory().rank == 3


def example(word):
  """The Python of docs/models.md that has a word."""
  text = (common.ROOT / 'docs' / 'models.md').read_text(encoding='utf-8')
  blocks = re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
  return next(block for block in blocks if word in block)


def test_the_example_of_a_foreign_model_runs(tmp_path, monkeypatch):
  """As printed, but for the size of the model and ids that it has."""
  gemma = einsum_layers_test.tiny_gemma()
  monkeypatch.chdir(tmp_path)
  text = example('gemma')
  # Thirty lines from the model to the file.
  body = text[text.index('gemma = '):]
  assert len([x for x in body.splitlines() if x.strip()]) <= 34
  text = text.replace('gm.nn.Gemma3_270M()', 'tiny_gemma')
  text = text.replace('rows = jnp', 'rows = jnp.arange(8)[None] + 0 * jnp')
  names = {'tiny_gemma': gemma}
  exec(compile(text, 'docs/models.md', 'exec'), names)
  file = tmp_path / 'adapters.safetensors'
  again = names['adapted'].load(names['params'], file)
  for path, value in names['trained'].items():
    np.testing.assert_array_equal(trainable.flatten(again)[path], value)
  assert names['loss'] < 10 and len(names['trained']) == 2 * 2 * 3


def test_the_example_saves_what_is_taken_out_of_the_kernel(
    tmp_path, monkeypatch
):
  """It does not train, and belongs to the adapter all the same."""
  monkeypatch.chdir(tmp_path)
  one = adapted('pissa', rank=2)
  fresh = one.module.init(jax.random.key(0), IDS)['params']
  params = jax.tree.map(jnp.ones_like, fresh)
  (line,) = re.findall(r'^adapted\.save.*', example('gemma'), re.M)
  trained, frozen = one.split(params)
  exec(line, {'adapted': one, 'trained': trained, 'frozen': frozen})
  loaded = trainable.flatten(one.load(fresh, 'adapters.safetensors'))
  assert all(loaded[k].all() for k in loaded if trainable.is_adapter(k))
  one.save(trained, 'adapters.safetensors')
  with refused('adapters.safetensors', 'frozen_a', 'all parameters'):
    one.load(fresh, 'adapters.safetensors')


def test_the_example_of_nnx_runs():
  names = {'model': Mlp(), 'rows': IDS}
  exec(compile(example('nnx'), 'docs/models.md', 'exec'), names)
  assert np.isfinite(names['loss'])


@pytest.mark.slow
def test_the_package_has_the_function_and_nothing_else():
  assert moe_peft.adapt is own_loop.adapt
  with pytest.raises(AttributeError):
    moe_peft.adopt  # noqa: B018
