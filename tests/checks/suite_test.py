# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of checks, subjects of experiments and networks, the export."""

import dataclasses
import functools

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.checks import exports
from moe_peft.checks import networks
from moe_peft.checks import outcome
from moe_peft.checks import random_rows
from moe_peft.checks import small
from moe_peft.checks import suite
from moe_peft.core import inject
from moe_peft.core import tokens as tokens_lib
from moe_peft.hf import verify
from moe_peft.methods import molora
from moe_peft.methods import spectral
from moe_peft.models import decoder
from moe_peft.models import decoder_config
from moe_peft.models import t5
from tests import refusals
from tests.checks import tiny
from tests.training import tiny as tiny_run

MOLORA = functools.partial(molora.MoLoRA, num_experts=3, rank=2)
ENCODER = '(.*/)?encoder/layers_0/.*wo'
GOAT = functools.partial(spectral.GOAT, num_experts=3)
NOTHING = {'params': {}}  # Of a network that can be built.


def crash(subject):
  raise RuntimeError('two\nlines')


def skip(subject):
  raise outcome.Skipped('nothing to ask')


def fail(subject):
  raise outcome.Failure('They differ.')


@pytest.mark.parametrize(
    ('run', 'status', 'says'),
    [(lambda subject: None, 'passed', ''), (skip, 'skipped', 'nothing to ask'),
     (fail, 'failed', 'They differ.'),
     (crash, 'failed', 'It ended with RuntimeError: two lines')],
)
def test_a_result_says_what_was_found(run, status, says):
  check = suite.Check('name', run, 'It is bad.', 'There.')
  result = suite._result(check, None)
  assert (result.status, result.detail) == (status, says)
  failed = status == 'failed'
  assert (result.means, result.look) == (
      ('It is bad.', 'There.') if failed else ('', '')
  )


def test_every_check_says_what_it_means_and_where_to_look():
  assert len(set(suite.NAMES)) == len(suite.CHECKS) == 16
  for check in suite.CHECKS:
    assert check.means.endswith('.') and check.look.endswith('.')


@pytest.mark.slow
def test_only_the_checks_that_are_named_run():
  begun = []
  results = list(suite.run(
      tiny.adapted(MOLORA), ('identity', 'sharding'), begun.append
  ))
  assert begun == [result.name for result in results]
  assert [result.status for result in results] == ['passed', 'skipped']


def module_of(config, path='.*/wo'):
  network = t5.Transformer if isinstance(config, t5.T5Config) else (
      decoder.Transformer)
  return inject.AdaptedModule(network(config), (inject.OutputRule(
      path, MOLORA),))


def test_sizes_get_small_and_proportions_stay():
  own = decoder_config.DecoderConfig(
      vocab_size=49152, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64,
      num_layers=30, mlp_dim=1536, dtype=jnp.bfloat16, scan_layers=True,
      remat_policy='full',
  )
  module = small.shrink_module(module_of(own), lambda module: NOTHING, 2)
  config = module.module.config
  assert config.num_layers == 2 and config.vocab_size == 64
  assert (config.num_heads, config.num_kv_heads) == (6, 2)
  assert config.emb_dim == config.num_heads * config.head_dim  # As 9 * 64.
  assert config.dtype == jnp.float32
  assert config.scan_layers and config.remat_policy == 'full'
  assert 'num_layers 2 (30)' in small.sizes(module_of(own), module)
  assert module.rules == module_of(own).rules or module.rules


def test_as_many_layers_stay_as_the_network_needs():
  own = t5.T5Config(64, num_encoder_layers=24, num_decoder_layers=6)

  def init(module):
    if module.module.config.num_encoder_layers < 4:
      raise ValueError('The pattern needs four layers.')
    return NOTHING

  config = small.shrink_module(module_of(own), init).module.config
  assert (config.num_encoder_layers, config.num_decoder_layers) == (4, 4)
  assert config.num_heads == 2


@pytest.mark.parametrize(
    ('experts', 'rank', 'width'), [(2, 4, 16), (8, 4, 32), (1, 64, 64)]
)
def test_kernels_have_as_many_singular_values_as_experts_have_ranks(
    experts, rank, width
):
  own = t5.T5Config(
      384, emb_dim=512, num_heads=8, head_dim=64, mlp_dim=1024,
      num_encoder_layers=12, num_decoder_layers=12,
  )
  goat = functools.partial(spectral.GOAT, num_experts=experts, rank=rank)
  if experts == 1:
    goat = functools.partial(spectral.PiSSA, rank=rank)
  network = t5.Transformer(own)
  rule = inject.OutputRule('.*/(query|wo)', goat)
  module = inject.AdaptedModule(network, (rule,))
  config = networks.subject(module).module.module.config
  assert (config.emb_dim, config.num_encoder_layers) == (width, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'status'), [(spectral.PiSSA, 'passed'), (GOAT, 'skipped')]
)
def test_adapters_begin_with_parts_of_random_kernels(method, status):
  subject = tiny.subject(tiny.network(method, ENCODER, rank=2))
  (result,) = suite.run(subject, ('identity',))
  assert result.status == status
  halves = [x for k, x in subject.params.items() if k.endswith('frozen_a')]
  assert halves and all(np.any(x) for x in halves)


@pytest.mark.slow
@pytest.mark.parametrize('alpha', [2.0, 2000.0])
def test_outputs_change_by_half_at_most_whatever_alpha_is(alpha):
  subject = tiny.subject(tiny.network(MOLORA, '.*/wo', alpha=alpha))
  fresh, _ = subject.evaluate(subject.params, subject.batch)
  changed, _ = subject.evaluate(subject.moved, subject.batch)
  assert (subject.noise == 1) == (alpha == 2)
  moved = np.linalg.norm(changed - fresh) / np.linalg.norm(fresh)
  assert 1e-3 < moved < 0.5


def test_a_network_that_cannot_be_small_keeps_its_size():
  def init(module):
    raise ValueError('Never.')

  module = module_of(t5.T5Config(64))
  assert small.shrink_module(module, init) is module
  assert 'own size' in small.sizes(module, module)


@pytest.mark.slow
def test_the_structure_of_an_experiment_stays(tmp_path):
  made = tiny_run.experiment(
      tmp_path, 'sira', PACKING=True, NUM_MICROBATCHES=4, SCAN_LAYERS=True,
      NUM_EXPERTS=6, NUM_SELECTED_EXPERTS=2,
  )
  got = small.shrink(made)
  assert got.packing and got.num_microbatches == 2
  assert got.model.module.rules == made.model.module.rules
  assert got.model.module.module.config.scan_layers
  assert got.mixture_or_task_name == random_rows.TASK
  batch = random_rows.batch(got)
  assert (batch['decoder_segment_ids'].max(axis=1) > 1).all()
  batch = random_rows.batch(dataclasses.replace(got, packing=False))
  assert (batch['decoder_target_tokens'] == 0).any()


class Decoder(nn.Module):
  """A foreign decoder: its own names, its own call."""

  @nn.compact
  def __call__(self, ids, deterministic=True):
    x = nn.Embed(32, 8)(ids)
    x = x + nn.Dense(8, name='mix')(jnp.cumsum(x, axis=1) / 4)
    x = x + nn.Dropout(0.1, deterministic=deterministic)(x)
    return {'logits': nn.Dense(32, name='head')(x)}


class TwoInputs(nn.Module):
  """A network of which nobody knows what the ids are."""

  @nn.compact
  def __call__(self, left, right):
    return nn.Dense(4, name='mix')(left + right)


def foreign(make, network=None, **fields):
  rule = inject.OutputRule('mix', make)
  return inject.AdaptedModule(network or Decoder(), (rule,), **fields)


by_ids = functools.partial(tokens_lib.tokens_argument, name='ids')


@pytest.mark.slow
def test_a_foreign_network_is_checked_alone():
  subject = networks.subject(foreign(MOLORA, describe_tokens=by_ids))
  results = {result.name: result for result in suite.run(subject)}
  failed = {k: x.detail for k, x in results.items() if x.status == 'failed'}
  assert not failed
  skipped = {k for k, x in results.items() if x.status == 'skipped'}
  assert skipped == {
      'packing', 'scan', 'sharding', 'frozen', 'optimizer state', 'resume',
      'export',
  }


def test_a_broken_adapter_on_a_foreign_network_is_found():
  from tests.checks import tokens_test

  subject = networks.subject(
      foreign(tokens_test.Ahead, describe_tokens=by_ids)
  )
  (result,) = suite.run(subject, ('causality',))
  assert result.status == 'failed'


def test_padding_is_not_asked_where_there_is_none():
  module = foreign(MOLORA, describe_tokens=tokens_lib.all_real)
  (result,) = suite.run(networks.subject(module), ('padding',))
  assert result.status == 'skipped'


def test_a_network_of_two_inputs_is_refused():
  with refusals.refused('MODULE', 'left', 'right'):
    networks.subject(foreign(MOLORA, TwoInputs()))
  with refusals.refused('inject.AdaptedModule.describe_tokens'):
    networks.subject(foreign(MOLORA))


@pytest.mark.slow
@pytest.mark.hf
def test_an_export_is_compared_in_torch(tmp_path, monkeypatch):
  for package in ('torch', 'transformers', 'peft'):
    pytest.importorskip(package)
  # A scan: of its layers T5's files have one table of position biases.
  subject = small.subject(tiny_run.experiment(tmp_path, SCAN_LAYERS=True))
  exports.parity(subject)
  logits = verify._logits
  monkeypatch.setattr(
      verify, '_logits', lambda *args: logits(*args) + 1e-3
  )
  with pytest.raises(outcome.Failure, match='torch'):
    exports.parity(subject)


@pytest.mark.slow
def test_what_cannot_be_exported_is_skipped():
  with pytest.raises(outcome.Skipped, match='Experiment|not installed'):
    exports.parity(tiny.adapted(MOLORA))
