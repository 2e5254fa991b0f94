# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small adapted models with moderate random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import trainable
from moe_peft.data import vocabularies
from moe_peft.hf import trained as trained_lib
from moe_peft.methods import adamix
from moe_peft.methods import adamole
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import sira
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora
from moe_peft.models import t5

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


def rule(path, cls, router=None, at_input=False, **options):
  """A rule with the options of adapter and router given."""
  if isinstance(router, dict):
    router = functools.partial(routing.Router, **router)
  if router is not None:
    options['router_factory'] = router
  kind = inject.InputRule if at_input else inject.OutputRule
  return kind(path, functools.partial(cls, **options))


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
        rule('.*/wo', ia3.IA3, at_input=True),
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
        rule('.*/wo', mov.MoV, {}, at_input=True, num_experts=4),
    ),
    'mixed': (
        rule('.*/(query|out)', molora.MoLoRA, {}, num_experts=2, rank=2),
        rule('.*/(key|act)', mov.MoV, BY_HEAD, num_experts=3),
        rule('.*/wo', lora.LoRA, rank=2),
    ),
}


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
  """A `Trained` with random parameters, equal in both layouts."""
  rules = METHODS[method] if isinstance(method, str) else method
  module = inject.AdaptedModule(t5.Transformer(config), rules)
  ones = jnp.ones((1, 4), jnp.int32)
  shapes = trainable.flatten(
      jax.eval_shape(
          lambda key: module.init(key, ones, ones, ones, enable_dropout=False),
          jax.random.key(0),
      )['params']
  )
  params = {}
  for path in sorted(shapes):
    rng = np.random.default_rng([seed, *path.encode()])
    array = values(path, shapes[path].shape, rng).astype(np.float32)
    if path.endswith('relpos_bias/rel_embedding') and array.ndim == 3:
      array[:] = array[:, :1]  # One table per stack, as in every T5.
    params[path] = array
  changes.setdefault('vocabulary', vocabularies.byte_vocabulary())
  return trained_lib.Trained(module=module, params=params, **changes)


def nested(trained):
  """Nested parameters of a `Trained`."""
  return trainable.unflatten(trained.params)
