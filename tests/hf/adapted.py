# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small adapted models with moderate random weights."""

import functools

import jax
import numpy as np

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import trainable
from moe_peft.data import vocabularies
from moe_peft.hf import decoder_base
from moe_peft.hf import trained as trained_lib
from moe_peft.methods import adamix
from moe_peft.methods import adamole
from moe_peft.methods import bank
from moe_peft.methods import bottleneck
from moe_peft.methods import comol
from moe_peft.methods import dora
from moe_peft.methods import dynmole
from moe_peft.methods import expert_choice
from moe_peft.methods import flylora
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import ldmole
from moe_peft.methods import lora
from moe_peft.methods import mixlora
from moe_peft.methods import mlae
from moe_peft.methods import mode
from moe_peft.methods import modula
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mor_lora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import retrieval
from moe_peft.methods import sira
from moe_peft.methods import smear
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora
from moe_peft.methods import spectral
from moe_peft.methods import ttlora
from moe_peft.models import decoder
from moe_peft.models import decoder_config
from moe_peft.models import decoder_only
from moe_peft.models import encoder_decoder
from moe_peft.models import t5
from tests.hf import families_test

DENSE = '.*/(query|key|value|out|wi|wi_0|wo)'
SCALED = '.*/(key|value|act)'
CONFIG = t5.T5Config(
    vocab_size=384,
    emb_dim=24,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=16,
    mlp_dim=40,
    mlp_activations=('gelu', 'linear'),
)
LLAMA = decoder_config.DecoderConfig(
    vocab_size=384,
    emb_dim=24,
    num_heads=4,
    num_kv_heads=2,
    num_layers=2,
    head_dim=8,
    mlp_dim=40,
    rope_theta=500.0,
)


def rule(path, cls, router=None, kind=inject.OutputRule, **options):
  """A rule with the options of adapter and router given."""
  if isinstance(router, dict):
    router = functools.partial(routing.Router, **router)
  if router is not None:
    options['router_factory'] = router
  more = {}
  if kind is inject.BlockRule:
    more['siblings'] = ('wi', 'wi_0', 'wi_1')
  return kind(path, functools.partial(cls, **options), **more)


BY_HEAD = {'scores': scores.HeadScores()}
METHODS = {
    'lora': (rule(DENSE, lora.LoRA, rank=3, alpha=8.0),),
    'lora_two_ranks': (
        rule('encoder/.*/(query|value)', lora.LoRA, rank=2, alpha=8.0),
        rule('.*/(query|wo)', lora.LoRA, rank=3, alpha=5.0),
    ),
    'ia3': (rule(SCALED, ia3.IA3),),
    'ia3_wo': (
        rule('.*/(key|value)', ia3.IA3),
        rule('.*/wo', ia3.IA3, kind=inject.InputRule),
    ),
    'molora': (rule(DENSE, molora.MoLoRA, {}, num_experts=4, rank=3),),
    'molora_top2': (
        rule(
            DENSE,
            molora.MoLoRA,
            {'select': selection.TopK(k=2)},
            num_experts=4,
            rank=3,
            alpha=4.0,
        ),
    ),
    'molora_options': (
        rule(
            'encoder/.*/(query|wo)',
            molora.MoLoRA,
            {'select': smora.BiasedTopK(k=2)},
            num_experts=4,
            rank=2,
        ),
        rule(
            'decoder/.*/(query|wo)',
            molora.MoLoRA,
            {
                'scores': adamole.ThresholdScores(),
                'select': adamole.Threshold(normalize=False),
            },
            num_experts=3,
            rank=2,
        ),
        rule(
            '.*/value',
            molora.MoLoRA,
            adamix.AdaMixRouter,
            num_experts=3,
            rank=2,
        ),
    ),
    'sira': (rule(DENSE, sira.SiRA, num_experts=6, rank=2),),
    'moelora': (rule(DENSE, moelora.MoELoRA, num_experts=4, rank=2),),
    'hydralora': (
        rule('.*/wo', hydralora.HydraLoRA, {}, num_experts=3, rank=2),
        rule('.*/(query|value)', mosld.MoSLD, num_experts=3, rank=2),
    ),
    'adamole': (rule(DENSE, adamole.AdaMoLE, num_experts=4, rank=2),),
    'smora': (
        rule(
            '.*/(query|wo)',
            smora.SMoRA,
            num_experts=10,
        ),
        rule(
            '.*/value',
            smoe_dropout.SMoEDropout,
            {
                'scores': smoe_dropout.FrozenScores(),
                'select': smoe_dropout.GrowingTopK(k=2, first_k=1),
            },
            num_experts=3,
            rank=2,
        ),
    ),
    'mola': (
        rule(
            DENSE,
            functools.partial(mola.by_depth, mola.MoLA, (2, 3)),
        ),
    ),
    'mov': (rule(SCALED, mov.MoV, BY_HEAD, num_experts=4),),
    'mov_released': (
        rule(
            SCALED,
            mov.MoV,
            {**BY_HEAD, 'select': selection.TopK(k=2)},
            num_experts=4,
            residual=False,
        ),
    ),
    'mov_wo': (
        rule('.*/(key|value)', mov.MoV, {}, num_experts=4),
        rule('.*/wo', mov.MoV, {}, kind=inject.InputRule, num_experts=4),
    ),
    'adamix': (
        rule(
            DENSE, adamix.AdaMix, kind=adamix.ConsistencyRule, num_experts=3,
            rank=2,
        ),
    ),
    'bottleneck': (
        rule(
            '.*/(out|wo)',
            bottleneck.Bottleneck,
            {'select': selection.TopK(k=2, normalize=True)},
            num_experts=4,
            rank=5,
        ),
    ),
    'mode': (rule(DENSE, mode.MoDE, num_experts=3, rank=2),),
    'mixlora': (
        rule(
            '.*/wo', mixlora.MixLoRA, kind=inject.BlockRule, num_experts=4,
            rank=3, alpha=6.0,
        ),
        rule('.*/(query|key|value|out)', lora.LoRA, rank=2),
    ),
    'one_block': (
        rule(
            '.*/wo', mixlora.MixLoRA, kind=inject.BlockRule, num_experts=1,
            rank=3, alpha=6.0,
        ),
    ),
    'molora_sentence': (
        rule(
            DENSE, molora.MoLoRA, {'scores': scores.SequenceScores()},
            num_experts=4, rank=3,
        ),
    ),
    'sentence_top1': (
        rule(
            DENSE, molora.MoLoRA,
            {
                'scores': scores.SequenceScores(),
                'select': selection.TopK(k=1, normalize=False),
            },
            num_experts=4, rank=3,
        ),
    ),
    'smear': (rule('.*/(out|wo)', smear.SMEAR, num_experts=3, rank=5),),
    'expert_choice': (
        rule(
            'encoder/.*/(query|wo)', expert_choice.ExpertChoice, num_experts=4,
            rank=3,
        ),
    ),
    'mixed': (
        rule('.*/(query|out)', molora.MoLoRA, {}, num_experts=2, rank=2),
        rule('.*/(key|act)', mov.MoV, BY_HEAD, num_experts=3),
        rule('.*/wo', lora.LoRA, rank=2),
    ),
}


# The ids of the byte vocabulary; long enough for rope of one kind.
_IDS = {
    'bos_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 0, 'vocab_size': 384,
    'max_position_embeddings': 256,
}
FAMILIES = {
    't5': CONFIG,
    't5_tied': CONFIG.replace(
        logits_via_embedding=True, mlp_activations=('relu',)
    ),
    't5_scan': CONFIG.replace(scan_layers=True),
    'umt5': CONFIG.replace(relative_bias_per_layer=True),
    'llama': LLAMA,
    'llama_scan': LLAMA.replace(scan_layers=True, logits_via_embedding=True),
    # Contents of a `config.json`.
    **{
        name: {**families_test.SIZES, **row, **_IDS}
        for name, row in families_test.FAMILIES.items()
    },
}
FAMILIES['phi4_mini']['original_max_position_embeddings'] = 256
_SENTENCE = {'scores': scores.SequenceScores()}
# What is multiplied out to pairs, and the selections of single methods.
METHODS['newer'] = (
    rule('.*/query', comol.CoMoL, num_experts=3, rank=2),
    rule(
        '.*/key', flylora.FlyLoRA,
        functools.partial(
            flylora.FlyLoRARouter, select=flylora.Largest(k=2)
        ),
        num_experts=6, alpha=6.0,
    ),
    rule(
        '.*/value', ldmole.LDMoLE,
        functools.partial(
            ldmole.LDMoLERouter, scores=ldmole.LambdaScores(hidden=4)
        ),
        num_experts=4, rank=2,
    ),
    rule('.*/out', modula.MoDULARes, num_experts=3, rank=2),
    rule(
        '.*/wi_0', dynmole.DynMoLE,
        {'select': dynmole.Mass(entropy_threshold=1.2)}, num_experts=4, rank=2,
    ),
    rule('.*/wi_1', mor_lora.MoRLoRA, num_experts=4, rank=2),
    rule(
        '.*/wo', molora.MoLoRA,
        {'select': smora.BiasedTopK(k=2, softmax=True, bias_in_gate=False)},
        num_experts=4, rank=2,
    ),
)
METHODS['newer_plain'] = (
    rule('.*/query', mlae.MLAE, rank=3),
    rule('.*/key', dora.DoRA, rank=2, alpha=4.0),
    rule('.*/value', lora.LoRA, rank=3, alpha=2.0, rank_stabilized=True),
    rule('.*/out', modula.MoDULARes, num_experts=1, rank=2),
    rule('.*/wi_0', spectral.PiSSA, rank=2),
    rule('.*/wi_1', spectral.GOAT, num_experts=3, rank=2, alpha=4.0),
    rule('.*/wo', ttlora.TTLoRA, rank=2, alpha=1.0),
)
# One model for all that torch must compute.
METHODS['all_kinds'] = (
    rule('.*/key', mov.MoV, BY_HEAD, num_experts=3),
    rule('.*/value', mode.MoDE, num_experts=3, rank=2),
    rule(
        '.*self_attention/out',
        bottleneck.Bottleneck,
        {'select': selection.TopK(k=2, normalize=True)},
        num_experts=4,
        rank=5,
    ),
    rule('decoder/.*/act', ia3.IA3),
    rule(
        'decoder/.*/wo', mixlora.MixLoRA, kind=inject.BlockRule, num_experts=3,
        rank=2,
    ),
    rule('decoder/.*self_attention/query', adamole.AdaMoLE, num_experts=3),
)
_TOP2 = {'select': selection.TopK(k=2, normalize=True)}
METHODS['bank'] = tuple(
    rule(path, bank.Bank, router, num_experts=3, rank=2, alpha=2.0)
    for path, router in (
        ('.*/query', {'scores': bank.ArrowScores(temperature=0.2), **_TOP2}),
        ('.*/value', {'scores': bank.SpectRScores(temperature=0.2), **_TOP2}),
        ('.*/out', {'scores': bank.GateScores(), **_TOP2}),
        ('.*/wi_0', {'scores': bank.RandomScores(), **_TOP2}),
        ('.*/key', {'scores': retrieval.RetrievalScores(), **_TOP2}),
        ('.*/wo', {'scores': bank.NoScores()}),
    )
)
METHODS['all_kinds_t5'] = (
    rule('.*encoder_decoder_attention/value', mode.MoDE, num_experts=3, rank=2),
    rule('.*/(value|query)', molora.MoLoRA, _SENTENCE, num_experts=3, rank=2),
    rule('.*/out', smear.SMEAR, num_experts=3, rank=5),
    rule('encoder/.*/wi_0', expert_choice.ExpertChoice, num_experts=4, rank=3),
    *METHODS['all_kinds'][:1],
    rule(
        '.*/wo', mixlora.MixLoRA, kind=inject.BlockRule, num_experts=3, rank=2
    ),
)
# Those of encoders.
T5_ONLY = ('lora_two_ranks', 'molora_options', 'expert_choice', 'all_kinds_t5')


def methods_of(family):
  """The methods that a family can have."""
  if family.startswith(('t5', 'umt5')):
    return list(METHODS)
  return [name for name in METHODS if name not in T5_ONLY]


def values(path, shape, rng):
  """Values of the size that training leaves; exports are compared at 1e-4."""
  name = path.rsplit('/', 1)[-1]
  draw = lambda std: rng.normal(0.0, std, shape)
  if name in ('scale', 'scaling'):
    return 1 + draw(0.2)
  if name == 'embedding':
    return draw(1.0)
  if '/router/' in path:
    return draw(0.5)
  if '/adapter/' in path:
    return draw(0.1)
  if 'query' in path:
    return draw(0.1)
  return draw(0.3 if 'logits' in path or 'relpos' in path else 0.2)


def make(method, config=CONFIG, seed=0, **changes):
  """A `Trained` with random parameters, equal in both layouts.

  Args:
    method: A key of `METHODS`, or rules.
    config: A key of `FAMILIES`, or a value.
    seed: Of the parameters.
    **changes: Further fields of `Trained`.
  """
  config = FAMILIES[config] if isinstance(config, str) else config
  if isinstance(config, dict):
    changes['hf_config'] = config
    config = decoder_base.from_hf(config)
  rules = METHODS[method] if isinstance(method, str) else method
  vocabulary = vocabularies.byte_vocabulary()
  network, model = t5.Transformer, encoder_decoder.EncoderDecoderModel
  if isinstance(config, decoder_config.DecoderConfig):
    network, model = decoder.Transformer, decoder_only.DecoderOnlyModel
  module = inject.AdaptedModule(network(config), rules)
  model = model(module, vocabulary, vocabulary)
  lengths = {'inputs': 4, 'targets': 4}
  init = lambda key: model.init(key, lengths)
  shapes = jax.eval_shape(init, jax.random.key(0))
  params = {}
  for path, shape in sorted(trainable.flatten(shapes['params']).items()):
    rng = np.random.default_rng([seed, *path.encode()])
    array = values(path, shape.shape, rng).astype(np.float32)
    if path.endswith('relpos_bias/rel_embedding') and array.ndim == 3:
      array[:] = array[:, :1]  # One table per stack, as in every T5.
    if path.endswith('layer_index'):
      array[:] = np.arange(array.shape[-1])
    params[path] = array
  return trained_lib.Trained(model, params, **changes)


def nested(trained):
  """Nested parameters of a `Trained`."""
  return trainable.unflatten(trained.params)
