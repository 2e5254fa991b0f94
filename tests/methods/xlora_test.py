# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""X-LoRA: what a first pass reads, and that decoding reads it too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import trainable
from moe_peft.methods import bank
from moe_peft.methods import xlora
from moe_peft.models import decoder
from moe_peft.models import decoder_config
from moe_peft.models import decoder_only
from moe_peft.models import encoder_decoder
from moe_peft.models import t5
from tests.refusals import refused

WIDTH, EXPERTS, LAYERS = 8, 3, 2
SIZES = dict(
    vocab_size=300, emb_dim=WIDTH, num_heads=2, head_dim=4, mlp_dim=16,
    dtype=jnp.float32,
)
VOCABULARY = seqio.ByteVocabulary()
LENGTHS = {'inputs': 6, 'targets': 4}


def rule(layerwise=False, temperature=1.0, num_selected=EXPERTS, **classifier):
  """X-LoRA on some layers of each stack, cross-attention among them."""
  router = functools.partial(
      routing.Router,
      scores=xlora.ClassifierScores(
          layerwise=layerwise, temperature=temperature
      ),
      select=selection.TopK(k=num_selected),
  )
  make = functools.partial(
      bank.Bank, num_experts=EXPERTS, rank=2, router_factory=router
  )
  return xlora.TwoPasses(
      '.*/(key|wo)', make, layerwise=layerwise, **classifier
  )


def model(kind, scan=False, **options):
  rules = (rule(**options),)
  if kind == 't5':
    network = t5.Transformer(t5.T5Config(
        num_encoder_layers=LAYERS, num_decoder_layers=LAYERS, scan_layers=scan,
        mlp_activations=('gelu', 'linear'), **SIZES
    ))
    make = encoder_decoder.EncoderDecoderModel
  else:
    network = decoder.Transformer(decoder_config.DecoderConfig(
        num_layers=LAYERS, num_kv_heads=1, scan_layers=scan, **SIZES
    ))
    make = decoder_only.DecoderOnlyModel
  return make(inject.AdaptedModule(network, rules), VOCABULARY, VOCABULARY)


def filled(made_of):
  """Random parameters: experts and the classifier are far from zero."""
  params = trainable.flatten(
      jax.jit(lambda: made_of.init(jax.random.key(0), LENGTHS)['params'])()
  )
  for path, x in params.items():
    if trainable.is_adapter(path):
      rng = np.random.default_rng(list(path.encode()))
      params[path] = jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32)
  return trainable.unflatten(params)


def batch(kind, inputs, targets):
  """A row of inputs and targets as the converters make it."""
  if kind == 't5':
    inputs = jnp.asarray([inputs])
    moved = jnp.asarray([[0, *targets[:-1]]])
    return {
        'encoder_input_tokens': inputs, 'decoder_input_tokens': moved,
        'decoder_target_tokens': jnp.asarray([targets]),
    }
  row = [*inputs, *targets]
  return {
      'decoder_input_tokens': jnp.asarray([[0, *row[:-1]]]),
      'decoder_segment_ids': jnp.asarray([row]).astype(bool).astype(jnp.int32),
      'decoder_target_tokens': jnp.asarray([row]),
  }


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_weights_are_those_of_the_formula(kind):
  """Of hidden states that the bare network is asked for here."""
  made = model(
      kind, temperature=0.5, num_selected=2, depth=2, width=5,
  )
  params, given = filled(made), batch(kind, [5, 6, 7], [8, 9, 10])
  _, state = jax.jit(
      functools.partial(made.apply, mutable=('routing',))
  )(params, given)
  bare = made.without_adapters()
  _, hidden = jax.jit(functools.partial(
      bare.apply, mutable=('intermediates',), capture_intermediates=True
  ))(params, given)
  sown, hidden = state['routing'], hidden['intermediates']
  router = params['adapter']['router']
  for stack in ('encoder', 'decoder') if kind == 't5' else ('decoder',):
    x = np.asarray(hidden[stack][f'{stack}_norm']['__call__'][0])
    hidden_0 = router['hidden_0']
    x = np.maximum(x @ hidden_0['kernel'] + hidden_0['bias'], 0)
    x = x @ router['kernel'] + router['bias']
    weights = np.array(jax.nn.softmax(x / 0.5))
    np.put_along_axis(weights, weights.argmin(-1)[..., None], 0.0, -1)
    for layer in range(LAYERS):
      found = sown[stack][f'layers_{layer}']['mlp']['wo']['adapter']
      np.testing.assert_allclose(
          found['combine_weights'][0], weights, atol=1e-5
      )
    if stack == 'encoder':  # Keys of cross-attention are of its tokens.
      found = sown['decoder']['layers_1']['encoder_decoder_attention']['key']
      np.testing.assert_allclose(
          found['adapter']['combine_weights'][0], weights, atol=1e-5
      )


@pytest.mark.slow
@pytest.mark.parametrize('layerwise', [False, True])
@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_decoding_reads_what_full_passes_read(kind, scan, layerwise):
  """The first pass has a cache of its own; prompts have different lengths."""
  made = model(kind, scan, layerwise=layerwise)
  params = filled(made)
  prompts = jnp.asarray([[5, 6, 7, 9, 11, 12], [8, 4, 0, 0, 0, 0]])
  found = jax.jit(lambda p, x: made.generate(p, x, 4))(params, prompts)
  apply, answers = jax.jit(made.apply), []
  for row in prompts.tolist():
    inputs, answer = [x for x in row if x], []
    for place in range(4):
      targets = [*answer, *[3] * (4 - place)]
      given = batch(kind, inputs, targets)
      if kind == 'decoder':  # One shape, for one program.
        missing = [(0, 0), (0, 10 - len(inputs) - 4)]
        given = {k: jnp.pad(x, missing) for k, x in given.items()}
      else:
        missing = [(0, 0), (0, 6 - len(inputs))]
        given['encoder_input_tokens'] = jnp.pad(
            given['encoder_input_tokens'], missing
        )
      logits, _ = apply(params, given)
      at = place + (len(inputs) if kind == 'decoder' else 0)
      answer.append(int(logits[0, at].argmax()))
      if answer[-1] == VOCABULARY.eos_id:
        break
    answers.append(answer + [0] * (4 - len(answer)))
  assert found.tolist() == answers


@pytest.mark.slow
def test_no_token_sees_a_later_one():
  made = model('decoder')
  params, apply = filled(made), jax.jit(made.apply)
  logits, _ = apply(params, batch('decoder', [5, 6, 7], [8, 9, 10]))
  changed, _ = apply(params, batch('decoder', [5, 6, 7], [11, 9, 10]))
  np.testing.assert_array_equal(logits[:, :4], changed[:, :4])
  assert np.abs(logits[:, 4:] - changed[:, 4:]).max() > 0.01


@pytest.mark.parametrize(
    ('options', 'count'),
    [
        ({}, (WIDTH + 1) * EXPERTS),
        ({'layerwise': True}, (WIDTH + 1) * EXPERTS * 2 * LAYERS),
        ({'depth': 3, 'width': 5},
         (WIDTH + 1) * 5 + 6 * 5 + 6 * EXPERTS),
        ({'depth': 2, 'width': 5, 'layerwise': True},
         (WIDTH + 1) * 5 + 6 * EXPERTS * 2 * LAYERS),
    ],
)  # fmt: skip
def test_parameters_are_those_of_pefts_classifier(options, count):
  made = model('decoder', **options)
  shapes = trainable.flatten(jax.eval_shape(
      lambda: made.init(jax.random.key(0), LENGTHS)['params']
  ))
  trains = trainable.matcher('.*/adapter/router/.*')
  assert sum(x.size for path, x in shapes.items() if trains(path)) == count


@pytest.mark.slow
def test_the_classifier_drops_hidden_features_in_training_alone():
  made = model('decoder', depth=2, width=16, dropout=0.5)
  params, given = filled(made), batch('decoder', [5, 6, 7], [8, 9, 10])
  apply = jax.jit(made.apply)
  still, _ = apply(params, given)
  one, other = (
      apply(params, given, dropout_rng=jax.random.key(seed))[0]
      for seed in (0, 1)
  )
  again, _ = apply(params, given, dropout_rng=jax.random.key(0))
  np.testing.assert_array_equal(one, again)
  for x, y in ((one, still), (other, still), (one, other)):
    assert np.abs(x - y).max() > 1e-3


def test_a_cache_can_be_allocated_as_flax_does():
  """By an initialization of all steps, which the adapted pass goes through."""
  made = model('decoder')
  tokens = [jnp.ones((1, 6), jnp.int32)] * 2
  shapes = lambda network: jax.eval_shape(
      lambda: network.init(jax.random.key(0), *tokens, decode=True)
  )
  adapted, bare = shapes(made.module), shapes(made.module.module)
  assert adapted['cache'].keys() == bare['cache'].keys()


def test_two_classifiers():
  network = model('decoder').module
  twice = network.clone(rules=(
      dataclasses.replace(rule(), path='.*/key'),
      dataclasses.replace(rule(), path='.*/wo'),
  ))
  tokens = [jnp.ones((1, 3), jnp.int32)] * 2
  with refused('ADAPTER_RULES'):
    jax.eval_shape(lambda: twice.init(jax.random.key(0), *tokens))


def test_a_stack_without_hidden_states():
  made = model('t5', hidden_states='.*/decoder_norm')
  with refused('HIDDEN_STATES', 'SITES'):
    jax.eval_shape(lambda: made.init(jax.random.key(0), LENGTHS))
