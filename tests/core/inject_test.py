# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters land on the right layers, and the base does not notice."""

import functools

from flax import linen as nn
from flax import traverse_util
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import mixlora
from moe_peft.methods import molora
from tests import tiny_network
from tests.refusals import refused

MOLORA = functools.partial(molora.MoLoRA, num_experts=3, rank=2)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def init(network):
  """All variables, drawn as those of `checks.subject`, and as quickly."""
  key = jax.random.key(0, impl='unsafe_rbg')
  return network.init(key, *tiny_network.tokens())


def shapes(network):
  """The same without values."""
  return jax.eval_shape(network.init, jax.random.key(0), *tiny_network.tokens())


def adapted(*rules, base=None, **options):
  base = base or tiny_network.Network()
  return inject.AdaptedModule(base, rules, **options)


class Probe(nn.Module):
  """An adapter that remembers what it was given."""

  site: sites.Site
  seen = {}

  def __call__(self, inputs, outputs, tokens=None):
    self.seen[self.site.path] = (self.site, inputs, outputs, tokens)
    return outputs


def probe(rule_path, *args, network=None, **kwargs):
  Probe.seen.clear()
  network = network or tiny_network.Network()
  rules = (inject.OutputRule(rule_path, Probe),)
  model = inject.AdaptedModule(network, rules)
  args = args or tiny_network.tokens()
  init = functools.partial(model.init, **kwargs)
  jax.eval_shape(init, jax.random.key(0), *args)
  return Probe.seen


@pytest.mark.slow
def test_whole_tree_of_new_parameters():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  base = flat(init(tiny_network.Network())['params'])
  params = flat(init(model)['params'])
  want = {}
  for stack, attention in (
      ('encoder', 'attention'), ('decoder', 'self_attention')
  ):
    for layer in range(2):
      for site, in_size in ((f'{attention}/key', 8), ('mlp/wo', 12)):
        path = f'{stack}/layers_{layer}/{site}/adapter'
        want[f'{path}/lora_a'] = (3, in_size, 2)
        want[f'{path}/lora_b'] = (3, 2, 8)
        want[f'{path}/router/kernel'] = (in_size, 3)
  new = {k: v.shape for k, v in params.items() if k not in base}
  assert new == want
  for path, value in base.items():  # Not around, but in the layer: bit-equal.
    np.testing.assert_array_equal(params[path], value)


@pytest.mark.slow
def test_logical_axes():
  axes = flat(
      shapes(adapted(inject.OutputRule('.*/wo', MOLORA)))['params_axes']
  )
  path = 'decoder/layers_1/mlp/wo/adapter'
  assert axes[f'{path}/lora_a_axes'].names == ('expert', 'mlp', 'rank')
  assert axes[f'{path}/lora_b_axes'].names == ('expert', 'rank', 'embed')
  assert axes[f'{path}/router/kernel_axes'].names == ('mlp', 'unmodeled')
  axes = flat(
      shapes(adapted(inject.OutputRule('.*/act', ia3.IA3)))['params_axes']
  )
  # No mesh can divide one expert.
  assert axes['encoder/layers_0/mlp/act/adapter/scaling_axes'].names == (
      'unmodeled', 'mlp',
  )


def test_siblings_may_be_a_list():
  rule = inject.BlockRule('.*/wo', mixlora.MixLoRA, siblings=['wi_0', 'wi_1'])
  params = flat(shapes(adapted(rule))['params'])
  path = 'decoder/layers_1/mlp/wo/adapter/wi_0_lora_a'
  assert params[path].shape == (8, 8, 16)


def test_first_match_wins():
  model = adapted(
      inject.OutputRule('.*/encoder/.*/wo|encoder/.*/wo', lora.LoRA),
      inject.OutputRule('.*/wo', ia3.IA3),
  )
  params = flat(shapes(model)['params'])
  assert 'encoder/layers_0/mlp/wo/adapter/lora_a' in params
  assert 'encoder/layers_0/mlp/wo/adapter/scaling' not in params
  assert 'decoder/layers_0/mlp/wo/adapter/scaling' in params


@pytest.mark.parametrize('path', ['.*/qurey', '.*/quer'])
def test_a_rule_that_matches_nothing(path):
  with refused('SITES', 'query', repr(path)):
    shapes(adapted(inject.OutputRule(path, lora.LoRA)))


def test_an_alternative_that_matches_nothing():
  with refused('SITES', 'valeu', 'value'):
    shapes(adapted(inject.OutputRule('.*/(query|valeu)', lora.LoRA)))
  # An earlier rule may have taken its layers.
  rules = ('.*/wo', '.*/(query|wo)')
  shapes(adapted(*(inject.OutputRule(path, lora.LoRA) for path in rules)))


def test_names_of_the_other_kind_of_mlp_may_be_absent():
  seen = [f'decoder/mlp/{name}' for name in ('wi_0', 'wi_1', 'wo')]
  sites.require_alternatives('.*/(wi|wi_0|wo)', seen)
  with refused('SITES', 'wi_2'):
    sites.require_alternatives('.*/(wi_2|wo)', seen)


@pytest.mark.parametrize('path', ['(', 3])
def test_a_rule_that_is_no_regular_expression(path):
  with refused('SITES', repr(path)):
    shapes(adapted(inject.OutputRule(path, lora.LoRA)))


def test_a_rule_that_an_earlier_one_leaves_nothing():
  rules = (
      inject.OutputRule('.*/wo', lora.LoRA),
      inject.OutputRule('.*/mlp/wo', ia3.IA3),
  )
  with refused('SITES', 'earlier rule'):
    shapes(adapted(*rules))


@pytest.mark.slow
def test_a_rule_that_matches_everything_takes_layers_only():
  # It also matches modules, adapters and routers: no recursion, no adapter
  # on anything but a layer.
  params = flat(shapes(adapted(inject.OutputRule('.*', lora.LoRA)))['params'])
  owners = {k.split('/adapter/')[0] for k in params if '/adapter/' in k}
  assert {path.split('/')[-1] for path in owners} == {
      'query', 'key', 'value', 'out', 'wi_0', 'wi_1', 'act', 'wo',
  }
  assert not any(path.count('adapter') > 1 for path in params)


def test_routers_are_not_shared():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  params = flat(init(model)['params'])
  kernels = [v for k, v in params.items() if k.endswith('router/kernel')]
  assert len(kernels) == 8
  assert len({float(kernel[0, 0]) for kernel in kernels}) == 8


@pytest.mark.slow
def test_it_works_in_a_compiled_function():
  # A context entered outside of jit would be ignored by the second call.
  model = adapted(inject.OutputRule('.*/wo', ia3.IA3))
  params = flat(init(model)['params'])
  apply = jax.jit(lambda p, *t: model.apply({'params': p}, *t))
  first = apply(traverse_util.unflatten_dict(params, sep='/'),
                *tiny_network.tokens())
  doubled = {k: 2 * v if 'adapter' in k else v for k, v in params.items()}
  second = apply(traverse_util.unflatten_dict(doubled, sep='/'),
                 *tiny_network.tokens())
  assert np.abs(first - second).max() > 1e-3


@pytest.mark.slow
def test_encode_and_decode_are_the_call():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  variables = {'params': init(model)['params']}
  encoder, decoder, target = tiny_network.tokens()
  whole = model.apply(variables, encoder, decoder, target)
  encoded = model.apply(variables, encoder, method='encode')
  decoded = model.apply(
      variables, encoded, encoder, decoder, target, method='decode'
  )
  np.testing.assert_allclose(
      whole, jnp.concatenate([encoded, decoded], -1), atol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_a_pass_without_adapters_is_the_base_to_the_last_bit(scan):
  base = tiny_network.Network(tiny_network.Config(scan=scan))
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA), base=base)
  params = jax.tree.map(lambda x: x + 0.3, init(model)['params'])
  encoder, decoder, target = tokens = tiny_network.tokens()

  def run(model, *args, **options):
    apply = functools.partial(model.apply, mutable=['intermediates'], **options)
    return jax.jit(apply)({'params': params}, *args)

  # Adapters are there, and change what comes out.
  assert np.abs(run(model, *tokens)[0] - run(base, *tokens)[0]).max() > 1e-2
  off = functools.partial(run, model, adapters=False)
  for method, args in (
      ('__call__', tokens),
      ('encode', (encoder,)),
      ('decode', (jnp.ones((3, 6, 8)), encoder, decoder, target)),
  ):
    outputs, sown = off(*args, method=method)
    np.testing.assert_array_equal(outputs, run(base, *args, method=method)[0])
    assert not sown


@pytest.mark.slow
def test_a_pass_without_adapters_has_no_gradient_in_them():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  params = jax.tree.map(lambda x: x + 0.3, init(model)['params'])

  def loss(params, adapters):
    outputs = model.apply(
        {'params': params}, *tiny_network.tokens(), adapters=adapters
    )
    return jnp.sum(jnp.sin(outputs))

  for adapters in (True, False):
    grads = flat(jax.grad(loss)(params, adapters))
    moved = {k for k, g in grads.items() if np.abs(g).max() > 0}
    assert any('/adapter/' in k for k in moved) == adapters
    assert any(k.endswith('wo/kernel') for k in moved)


def test_a_model_may_be_made_without_adapters():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  made = functools.partial(model.init, adapters=False)
  params = jax.eval_shape(made, jax.random.key(0), *tiny_network.tokens())
  base = jax.eval_shape(
      tiny_network.Network().init, jax.random.key(0), *tiny_network.tokens()
  )
  assert flat(params['params']).keys() == flat(base['params']).keys()


def test_sites():
  seen = probe('.*')
  key = seen['decoder/layers_1/self_attention/key'][0]
  assert key == sites.Site(
      path='decoder/layers_1/self_attention/key',
      kernel_axis_names=('embed', 'joined_kv'),
      num_heads=2,
      causal=True,
      layer=1,
      num_layers=2,
  )
  wo = seen['encoder/layers_0/mlp/wo'][0]
  assert (wo.kernel_axis_names, wo.num_heads, wo.causal, wo.layer) == (
      ('mlp', 'embed'), None, False, 0,
  )
  assert wo.activations == ('gelu', 'linear')
  act = seen['encoder/layers_0/mlp/act'][0]
  assert act.kernel_axis_names == ('mlp', 'mlp')
  out = seen['encoder/layers_0/attention/out']
  assert out[0].kernel_axis_names == ('joined_kv', 'embed')
  assert out[1].shape == (3, 6, 8)  # Heads are joined.


def test_cross_attention_reads_the_encoder():
  for name, encoder in (('key', True), ('value', True), ('query', False),
                        ('out', False)):
    path = f'decoder/layers_0/encoder_decoder_attention/{name}'
    assert sites.reads_encoder(path) == encoder
  assert not sites.reads_encoder('layers_0/mlp/wo')
  assert sites.reads_encoder('encoder/encoder/mlp/wo')


def test_tokens_of_both_stacks():
  encoder, decoder, target = tiny_network.tokens()
  ids = jnp.ones_like(encoder)
  seen = {}
  class Keep(Probe):
    def __call__(self, inputs, outputs, tokens=None):
      seen[self.site.path] = tokens
      return outputs
  model = adapted(inject.OutputRule('.*/wo', Keep))
  model.init(jax.random.key(0), encoder, decoder, target, ids, 2 * ids)
  left = seen['encoder/layers_0/mlp/wo']
  np.testing.assert_array_equal(left.valid, encoder > 0)
  np.testing.assert_array_equal(left.segment_ids, ids)
  assert left.prompt is None
  right = seen['decoder/layers_0/mlp/wo']
  np.testing.assert_array_equal(right.valid, target > 0)
  np.testing.assert_array_equal(right.segment_ids, 2 * ids)
  np.testing.assert_array_equal(right.prompt_valid, encoder > 0)
  np.testing.assert_array_equal(right.prompt_segment_ids, ids)
  assert right.prompt.shape == (3, 6, 8)


def test_the_step_reaches_the_adapters():
  seen = probe('.*/wo', *tiny_network.tokens(), step=jnp.array(7))
  assert seen['encoder/layers_0/mlp/wo'][3].step.shape == ()


def test_only_adapters_in_a_scan_are_numbered():
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
      index = self.param('layer_index', nn.initializers.ones, (1,))
      return nn.Dense(4, name='wo')(x) + index, None

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      scan = nn.scan(
          Layer, variable_axes={'params': 0}, split_rngs={'params': True},
          length=3,
      )
      return scan(name='layers')(x)[0]

  class Numbered(nn.Module):
    site: sites.Site
    @nn.compact
    def __call__(self, inputs, outputs, tokens=None):
      return outputs + self.param('layer_index', nn.initializers.zeros, (1,))

  model = inject.AdaptedModule(Net(), (inject.OutputRule('.*/wo', Numbered),))
  params = flat(model.init(jax.random.key(0), jnp.ones((2, 5, 4)))['params'])
  # The model's own parameter of that name keeps its values.
  np.testing.assert_array_equal(params['layers/layer_index'].ravel(), [1] * 3)
  np.testing.assert_array_equal(
      params['layers/wo/adapter/layer_index'].ravel(), [0, 1, 2]
  )


def test_the_first_step_of_decoding_is_no_padding():
  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, decoder_input_tokens, decoder_target_tokens, decode):
      x = nn.Embed(9, 4)(decoder_input_tokens)
      return nn.Dense(4, name='wo')(x)

  Probe.seen.clear()
  model = inject.AdaptedModule(Decoder(), (inject.OutputRule('wo', Probe),))
  begin = jnp.zeros((2, 1), jnp.int32)  # The id that begins a sequence is 0.
  for decode in (True, False):
    jax.eval_shape(
        lambda x, decode=decode: model.init(jax.random.key(0), x, x, decode),
        begin,
    )
    assert (Probe.seen['wo'][3].valid is None) == decode
  assert Probe.seen['wo'][0].causal


def test_tokens_inside_a_wrapper_that_names_no_arguments():
  """As T5X's `examples.decoder_only`."""
  class Wrapper(nn.Module):
    @nn.compact
    def __call__(self, *args, **kwargs):
      return tiny_network.Network(name='inside')(*args, **kwargs)

  seen = {}
  class Keep(Probe):
    def __call__(self, inputs, outputs, tokens=None):
      seen[self.site.path] = tokens
      return outputs
  model = adapted(inject.OutputRule('.*/wo', Keep), base=Wrapper())
  encoder, decoder, target = tiny_network.tokens()
  model.init(jax.random.key(0), encoder, decoder, target)
  for stack, tokens in (('encoder', encoder), ('decoder', target)):
    valid = seen[f'inside/{stack}/layers_0/mlp/wo'].valid
    np.testing.assert_array_equal(valid, tokens > 0)


def test_tokens_inside_a_jitted_model_that_looks_attributes_up():
  """As Gemma's: Flax intercepts `__getattr__` too, which is no call."""
  class Decoder(nn.Module):
    def setup(self):
      self.wo = nn.Dense(4)

    def __getattr__(self, name: str):
      return super().__getattr__(name)

    @functools.partial(nn.jit, static_argnames=('self',))
    def __call__(self, tokens):
      return self.wo(jnp.ones((*tokens.shape, 4)))

  Probe.seen.clear()
  describe = lambda call: tokens_lib.tokens_argument(call)
  model = inject.AdaptedModule(
      Decoder(), (inject.OutputRule('wo', Probe),), describe
  )
  jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 5), jnp.int32))
  assert Probe.seen['wo'][3].valid.shape == (2, 5)


@pytest.mark.slow
def test_stock_flax_layers():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.DenseGeneral((2, 3), name='heads')(x)
      return nn.DenseGeneral(4, axis=(-2, -1), name='join')(x)

  model = inject.AdaptedModule(Net(), (inject.OutputRule('.*', MOLORA),))
  params = flat(model.init(jax.random.key(0), jnp.ones((2, 5, 4)))['params'])
  assert params['heads/adapter/lora_b'].shape == (3, 2, 6)
  assert params['join/adapter/lora_a'].shape == (3, 6, 2)


@pytest.mark.slow
def test_an_input_rule_scales_what_the_layer_reads():
  rule = inject.InputRule('.*encoder/.*/wo', ia3.IA3)
  model = adapted(rule)
  params = flat(init(model)['params'])
  names = [k for k in params if k.endswith('wo/adapter/scaling')]
  assert [params[k].shape for k in names] == [(1, 12)] * 2
  # Doubling the vector is doubling the kernel.
  doubled = {k: 2 * v if k in names else v for k, v in params.items()}
  kernel = {
      k: 2 * v if k.startswith('encoder') and k.endswith('wo/kernel') else v
      for k, v in params.items()
  }
  run = lambda p: model.apply(
      {'params': traverse_util.unflatten_dict(p, sep='/')},
      *tiny_network.tokens(),
  )
  np.testing.assert_allclose(run(doubled), run(kernel), atol=1e-5)


@pytest.mark.slow
def test_sown_shapes_and_routing_collection():
  model = adapted(inject.OutputRule('.*/(key|wo)', MOLORA))
  variables = {'params': init(model)['params']}
  _, state = model.apply(
      variables, *tiny_network.tokens(), mutable=['intermediates', 'routing']
  )
  sown = flat(state['intermediates'])
  names = {path.split('/')[-1] for path in sown}
  assert names == {*losses.METRICS, 'auxiliary_loss', 'router_z_loss'}
  assert all(x.shape == (1, 1, 1) for (x,) in sown.values())
  weights = flat(state['routing'])
  assert len(weights) == 8
  assert all(x.shape == (3, 6, 3) for (x,) in weights.values())


@pytest.mark.slow
def test_gin_can_bind_a_rule():
  gin.clear_config()
  gin.parse_config("""
from __gin__ import dynamic_registration
from moe_peft.core import inject
from moe_peft.methods import lora
inject.AdaptedModule.rules = (@some/inject.OutputRule(),)
some/inject.OutputRule.path = '.*/wo'
some/inject.OutputRule.adapter_factory = @lora.LoRA
lora.LoRA.alpha = 3.0
""")
  model = gin.get_configurable(inject.AdaptedModule)(
      module=tiny_network.Network()
  )
  (rule,) = model.rules
  assert rule.adapter_factory().alpha == 3.0
  gin.clear_config()
