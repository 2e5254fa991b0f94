# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA: equal to transformers', causal, and the same however it is run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import trainable
from moe_peft.methods import molora
from moe_peft.models import decoder
from moe_peft.models import decoder_config
from moe_peft.models import decoder_only
from moe_peft.models import rotary
from tests import refusals

# Four heads of 6 are not 20: a missing transpose or reshape is an error.
CONFIG = decoder_config.DecoderConfig(
    vocab_size=48,
    emb_dim=20,
    num_heads=4,
    num_kv_heads=2,
    num_layers=3,
    head_dim=6,
    mlp_dim=28,
)
RULES = (
    inject.OutputRule(
        '.*/(query|key|value|wo)',
        functools.partial(
            molora.MoLoRA,
            num_experts=3,
            rank=2,
            router_factory=functools.partial(
                routing.Router, select=selection.TopK(k=2)
            ),
        ),
    ),
)


class Vocabulary:
  """Only what generation asks for."""

  eos_id = 1


def adapted(config=CONFIG):
  return inject.AdaptedModule(decoder.Transformer(config), RULES)


def model(config=CONFIG):
  return decoder_only.DecoderOnlyModel(
      adapted(config), Vocabulary(), Vocabulary()
  )


def tokens(batch=2, length=9, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(2, 48, (batch, length)), jnp.int32)


@functools.cache
def variables(config=CONFIG):
  """Random parameters, adapters that do something included."""
  x = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(adapted(config).init, enable_dropout=False)
  shapes = jax.eval_shape(init, jax.random.key(0), x, x)['params']

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng(list(name.encode()))
    values = rng.normal(size=leaf.shape).astype(np.float32)
    if 'scale' in name:
      return 1 + 0.2 * values
    return values * (0.5 if 'embedding' in name else 0.2)

  return {'params': jax.tree_util.tree_map_with_path(fill, shapes)}


def to_scan(params):
  """The same values in the layout of the scan."""
  flat, scanned = trainable.flatten(params), {}
  for path, leaf in flat.items():
    if '/layers_' not in path:
      scanned[path] = leaf
    elif '/layers_0/' in path:
      leaves = [flat[path.replace('layers_0', f'layers_{i}')] for i in range(3)]
      parts = path.split('/')
      if parts[-1] == 'kernel' and 'adapter' not in parts:
        if parts[-2] in ('query', 'key', 'value'):
          leaves = [x.reshape(20, -1, 6) for x in leaves]
        elif parts[-2] == 'out':
          leaves = [x.reshape(-1, 6, 20) for x in leaves]
      scanned[path.replace('layers_0', 'decoder')] = np.stack(leaves, axis=1)
  return trainable.unflatten(scanned)


def apply(config, params, inputs, **options):
  run = functools.partial(
      adapted(config).apply, enable_dropout=False, **options
  )
  return jax.jit(run)(params, inputs, jnp.ones_like(inputs))


@pytest.mark.slow
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.hf
def test_logits_equal_those_of_transformers(tied, kv_heads):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = CONFIG.replace(
      num_kv_heads=kv_heads,
      logits_via_embedding=tied,
      rope_theta=500.0,
      norm_epsilon=1e-3,
  )
  network = decoder.Transformer(config)
  inputs = tokens(length=30)
  params = variables(config)['params']
  params = {
      k: v for k, v in trainable.flatten(params).items()
      if not trainable.is_adapter(k)
  }
  hf_config = transformers.LlamaConfig(
      vocab_size=48,
      hidden_size=20,
      intermediate_size=28,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=kv_heads,
      head_dim=6,
      rms_norm_eps=1e-3,
      rope_theta=500.0,
      tie_word_embeddings=tied,
      attn_implementation='eager',
  )
  theirs = transformers.LlamaForCausalLM(hf_config).eval()
  state = {'model.embed_tokens.weight': params['token_embedder/embedding']}
  state['lm_head.weight'] = (
      state['model.embed_tokens.weight']
      if tied
      else params['decoder/logits_dense/kernel'].T
  )
  state['model.norm.weight'] = params['decoder/decoder_norm/scale']
  names = {
      'self_attention/query/kernel': 'self_attn.q_proj.weight',
      'self_attention/key/kernel': 'self_attn.k_proj.weight',
      'self_attention/value/kernel': 'self_attn.v_proj.weight',
      'self_attention/out/kernel': 'self_attn.o_proj.weight',
      'mlp/wi_0/kernel': 'mlp.gate_proj.weight',
      'mlp/wi_1/kernel': 'mlp.up_proj.weight',
      'mlp/wo/kernel': 'mlp.down_proj.weight',
      'pre_self_attention_layer_norm/scale': 'input_layernorm.weight',
      'pre_mlp_layer_norm/scale': 'post_attention_layernorm.weight',
  }
  for layer in range(3):
    for ours, name in names.items():
      state[f'model.layers.{layer}.{name}'] = params[
          f'decoder/layers_{layer}/{ours}'
      ].T
  theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  with torch.no_grad():
    expected = theirs(torch.tensor(np.asarray(inputs)).long()).logits.numpy()
  with jax.default_matmul_precision('highest'):
    logits = network.apply(
        {'params': trainable.unflatten(params)},
        inputs,
        inputs,
        enable_dropout=False,
    )
  assert np.abs(expected).max() > 1.0
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_rotation_of_a_pair_is_a_turn_by_position_times_frequency():
  x = jnp.asarray([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
  x = jnp.broadcast_to(x, (1, 5, 1, 4))
  turns = rotary.frequencies(100.0, 4)
  rotated = rotary.rotate(x, jnp.arange(5)[None], turns)[0, :, 0]
  for position in range(5):
    # Pairs (0, 2) and (1, 3), with frequencies 1 and 100 ** -0.5.
    fast, slow = position, 0.1 * position
    np.testing.assert_allclose(
        rotated[position],
        [np.cos(fast), -2 * np.sin(slow), np.sin(fast), 2 * np.cos(slow)],
        atol=1e-6,
    )


def test_rotated_products_depend_on_the_distance_only():
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

  def product(query_position, key_position):
    turns = rotary.frequencies(10000.0, 8)
    turn = lambda x, p: rotary.rotate(x, jnp.full((1, 1), p), turns)
    return float(jnp.sum(turn(query, query_position) * turn(key, key_position)))

  np.testing.assert_allclose(product(7, 3), product(104, 100), atol=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-2


@pytest.mark.slow
def test_no_token_sees_a_later_one():
  inputs = tokens()
  logits = apply(CONFIG, variables(), inputs)
  changed = apply(CONFIG, variables(), inputs.at[:, 5].add(1))
  np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
  assert np.abs(logits[:, 5:] - changed[:, 5:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.slow
def test_causal_attention_makes_the_prefix_see_itself():
  inputs = tokens()
  prefix = jnp.asarray([[1] * 4 + [0] * 5] * 2)
  run = functools.partial(
      apply, CONFIG, variables(), decoder_causal_attention=prefix
  )
  logits, changed = run(inputs), run(inputs.at[:, 3].add(1))
  assert np.abs(logits[:, :3] - changed[:, :3]).max(axis=(0, 2)).min() > 1e-3
  later = run(inputs.at[:, 5].add(1))
  np.testing.assert_array_equal(logits[:, :5], later[:, :5])


def test_adapters_know_that_their_sites_are_causal():
  sites = {}

  def factory(site, name):
    sites[site.path] = site
    return molora.MoLoRA(site=site, name=name, num_experts=2, rank=1)

  rules = (inject.OutputRule('.*/(query|key|wi_0|act|wo)', factory),)
  module = inject.AdaptedModule(decoder.Transformer(CONFIG), rules)
  x = jnp.ones((1, 4), jnp.int32)
  jax.eval_shape(
      lambda: module.init(jax.random.key(0), x, x, enable_dropout=False)
  )
  assert len(sites) == 15
  assert all(site.causal for site in sites.values())
  key = sites['decoder/layers_2/self_attention/key']
  assert (key.layer, key.num_layers, key.num_heads) == (2, 3, 2)
  assert key.kernel_axis_names == ('embed', 'joined_kv')
  wo = sites['decoder/layers_0/mlp/wo']
  assert wo.kernel_axis_names == ('mlp', 'embed')
  assert wo.activations == ('silu', 'linear')


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'minimal', 'full'])
def test_scan_and_remat_change_neither_logits_nor_gradients(remat):
  inputs = tokens()
  config = CONFIG.replace(scan_layers=True, remat_policy=remat)

  def grads(config, params):
    def loss(params):
      logits = adapted(config).apply(
          {'params': params}, inputs, inputs, enable_dropout=False
      )
      return jnp.square(logits).mean(), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  expected, expected_logits = grads(CONFIG, variables()['params'])
  got, logits = grads(config, to_scan(variables()['params']))
  np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
  expected = trainable.flatten(to_scan(expected))
  got = trainable.flatten(got)
  assert got.keys() == expected.keys()
  for path, leaf in got.items():
    np.testing.assert_allclose(
        leaf, expected[path], atol=1e-4, rtol=1e-3, err_msg=path
    )


@pytest.mark.parametrize('scan', [False, True])
def test_generation_with_a_cache_equals_full_passes(scan):
  """Prompts of different lengths, one of them empty."""
  config = CONFIG.replace(scan_layers=scan)
  params = variables()['params']
  prompts = tokens(batch=3, length=6).at[1, 3:].set(0).at[2].set(0)
  generate = lambda p, x: model(config).generate(p, x, 5)
  generated = jax.jit(generate)(to_scan(params) if scan else params, prompts)
  full = jax.jit(
      lambda ids: adapted().apply(
          variables(), ids, jnp.ones_like(ids), enable_dropout=False
      )
  )
  expected = []
  for row, length in zip(prompts, (6, 3, 0), strict=True):
    ids = [0, *row[:length].tolist()]
    for _ in range(5):
      logits = full(jnp.asarray([ids + [0] * (12 - len(ids))]))
      ids.append(int(logits[0, len(ids) - 1].argmax()))
      if ids[-1] == Vocabulary.eos_id:
        break
    new = ids[length + 1 :]
    expected.append(new + [0] * (5 - len(new)))
  assert generated.tolist() == expected


@pytest.mark.slow
def test_beams_of_rows_with_prompts_of_different_lengths():
  """Rows go on at different positions; beams must not mix them up."""
  params = variables()['params']
  prompts = tokens(batch=2, length=4).at[1, 2:].set(0)
  search = jax.jit(lambda prompts: model().generate(params, prompts, 3, 4))
  together = search(prompts)
  swapped = search(prompts[::-1])
  np.testing.assert_array_equal(together, swapped[::-1])
  assert not np.array_equal(together[0], together[1])


@pytest.mark.slow
def test_packed_examples_equal_the_same_examples_alone():
  first, second = tokens(batch=1, length=4), tokens(batch=1, length=5, seed=1)
  packed = jnp.concatenate([first, second, jnp.zeros((1, 3), jnp.int32)], 1)
  segments = jnp.asarray([[1] * 4 + [2] * 5 + [0] * 3])
  positions = jnp.asarray([[*range(4), *range(5), 0, 0, 0]])
  logits = apply(
      CONFIG,
      variables(),
      packed,
      decoder_segment_ids=segments,
      decoder_positions=positions,
  )
  for ids, part in ((first, logits[:, :4]), (second, logits[:, 4:9])):
    np.testing.assert_allclose(
        part, apply(CONFIG, variables(), ids), atol=1e-4
    )


def test_packed_rows_cannot_be_decoded():
  x = tokens()
  with pytest.raises(ValueError, match='packed'):
    adapted().apply(
        variables(), x, x, x, enable_dropout=False, decode=True,
        mutable=['cache'],
    )


@pytest.mark.slow
def test_loss_and_score_count_the_targets_only():
  """Features as `converters.RowConverter` makes them."""
  params = variables()['params']
  ids = tokens(batch=2, length=8).at[1, 6:].set(0)
  weights = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]])
  batch = {
      'decoder_target_tokens': ids,
      'decoder_input_tokens': jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': weights,
      'decoder_segment_ids': (ids > 0).astype(jnp.int32),
      'decoder_causal_attention': jnp.asarray(
          [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
      ),
  }
  inputs = batch['decoder_input_tokens']
  logits = adapted().apply(
      {'params': params}, inputs, ids, enable_dropout=False
  )
  log_probs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_probs, ids[..., None], -1)[..., 0] * weights
  loss, metrics = model().loss(params, batch)
  np.testing.assert_allclose(loss, -chosen.sum() / 7, rtol=1e-5)
  assert metrics['loss'].count == 7
  np.testing.assert_allclose(
      model().score(params, batch), chosen.sum(-1), rtol=1e-5
  )
  np.testing.assert_array_equal(
      model().prompts(batch)[1], [*ids[1, :4].tolist(), 0, 0, 0, 0]
  )


@pytest.mark.slow
def test_logits_at_the_targets_alone_change_neither_loss_nor_gradient():
  params = variables()['params']
  ids = tokens(batch=3, length=8).at[1, 6:].set(0).at[2].set(0)
  batch = {
      'decoder_target_tokens': ids,
      'decoder_input_tokens': jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1],
      # As many targets as there may be, fewer, and a row of filling.
      'decoder_loss_weights': jnp.asarray(
          [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0], [0] * 8]
      ),
      'decoder_segment_ids': (ids > 0).astype(jnp.int32),
  }
  full, short = model(), dataclasses.replace(model(), target_length=5)
  def run(model, params):
    grads, metrics = jax.grad(model.loss, has_aux=True)(params, batch)
    return grads, metrics, model.score(params, batch)

  scores = jax.eval_shape(short.predict, params, batch)[0]
  assert scores.target.shape == (3, 5)
  expected, actual = (
      jax.jit(functools.partial(run, model))(params) for model in (full, short)
  )
  assert expected[1]['loss'].count == 7
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      expected,
      actual,
  )
  # A packed row has the targets of several examples.
  packed = batch | {'decoder_positions': jnp.zeros_like(ids)}
  scores = jax.eval_shape(short.predict, params, packed)[0]
  assert scores.target.shape == (3, 8)


@pytest.mark.slow
def test_a_router_at_the_output_layer_sees_whole_rows():
  rule = dataclasses.replace(RULES[0], path='.*/(query|logits_dense)')
  module = inject.AdaptedModule(decoder.Transformer(CONFIG), (rule,))
  full = dataclasses.replace(model(), module=module)
  short = dataclasses.replace(full, target_length=3)
  ids = tokens(batch=2, length=6)
  batch = {
      'decoder_target_tokens': ids, 'decoder_input_tokens': ids,
      'decoder_loss_weights': jnp.broadcast_to(jnp.arange(6) >= 3, ids.shape),
      'decoder_segment_ids': jnp.ones_like(ids),
  }
  params = full.init(jax.random.key(0), {'inputs': 3, 'targets': 3})['params']
  params['decoder']['logits_dense']['adapter']['lora_b'] += 0.3
  expected, actual = (
      jax.jit(model.loss)(params, batch) for model in (full, short)
  )
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5),
      expected, actual,
  )


@pytest.mark.parametrize(
    'field,value,name',
    [
        ('num_kv_heads', 3, 'num_heads'),
        ('head_dim', 7, 7),
        ('num_layers', 0, 0),
        ('remat_policy', 'all', "'all'"),
        ('mlp_activations', ('swish2',), "'swish2'"),
    ],
)
def test_wrong_sizes_are_named(field, value, name):
  with refusals.refused(f'decoder_config.DecoderConfig.{field}', name):
    decoder_config.check_config(CONFIG.replace(**{field: value}))


@pytest.mark.slow
def test_a_scan_keeps_no_kernels_for_the_backward_pass():
  # A type of its own: kernels are cast, and casts would be kept.
  config = CONFIG.replace(scan_layers=True, dtype=jnp.bfloat16)
  params = trainable.flatten(to_scan(variables()['params']))
  embedding = params.pop('token_embedder/embedding')
  inputs = tokens()

  def total(embedding):
    merged = {**params, 'token_embedder/embedding': embedding}
    return apply(
        config, {'params': trainable.unflatten(merged)}, inputs
    ).astype(jnp.float32).sum()

  jaxpr = jax.make_jaxpr(jax.grad(total))(embedding)
  kept = [
      var.aval.shape
      for scan in scans(jaxpr.jaxpr) for var in scan.outvars
  ]
  kernels = {
      (3, 20, 28), (3, 28, 20), (3, 20, 4, 6), (3, 20, 2, 6), (3, 4, 6, 20),
      (3, 20, 24), (3, 20, 12), (3, 24, 20),
  }
  assert kept
  assert not kernels & set(kept)


def scans(jaxpr):
  """The scans of a program, those in its calls too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'scan':
      yield equation
    elif inner := equation.params.get('jaxpr'):
      yield from scans(getattr(inner, 'jaxpr', inner))
