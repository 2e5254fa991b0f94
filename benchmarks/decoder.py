# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoder alone whose training step is timed.

Mixtures are in its MLPs and LoRA on its attention, as MoE-PEFT's LoRAMoE has
it: of `SIZES` 708,608 parameters train.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from benchmarks import experiments
from benchmarks import published
from moe_peft.core import inject
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.training import experiment as experiment_lib

LORA, MOLORA = 'LoRA', 'MoLoRA'
PUBLISHED = 'published MoLoRA formula'
SIZES = {
    'vocab_size': 32000,
    'emb_dim': 256,
    'mlp_dim': 1024,
    'num_layers': 4,
    'num_heads': 4,
    'head_dim': 64,
    'num_experts': 10,
    'rank': 4,
    'lora_rank': 30,
}
# Fills an accelerator.
LARGE_SIZES = SIZES | {
    'emb_dim': 2048,
    'mlp_dim': 5632,
    'num_heads': 16,
    'head_dim': 128,
    'lora_rank': 27,
}


def build(
    sizes: Mapping[str, int],
    batch_size: int,
    length: int,
    method: str = 'lora',
    bindings: Mapping[str, Any] | None = None,
) -> experiment_lib.Experiment:
  """The experiment, by default with LoRA everywhere.

  Args:
    sizes: As `SIZES`, and perhaps `num_kv_heads`.
    batch_size: Rows.
    length: Tokens of a row.
    method: File of gin/methods/.
    bindings: Further gin bindings.
  """
  names = ('vocab_size', 'emb_dim', 'mlp_dim', 'num_layers', 'num_heads',
           'head_dim')
  config = 'decoder_config.DecoderConfig'
  return experiments.build(
      'tiny_llama', method, (length // 2, length - length // 2), batch_size,
      {
          f'{config}.logits_via_embedding': False,
          f'{config}.num_kv_heads': sizes.get(
              'num_kv_heads', sizes['num_heads']
          ),
          **{f'{config}.{name}': sizes[name] for name in names},
          **(bindings or {}),
      },
  )


def rules(
    sizes: Mapping[str, int],
) -> dict[str, tuple[inject.OutputRule, ...]]:
  """The adapters of the cases.

  Args:
    sizes: As `SIZES`.

  Returns:
    By name of the case: the rules of `inject.AdaptedModule`.
  """
  attention, mlp = '.*/(query|key|value|out)', '.*/(wi_0|wi_1|wo)'
  rank, num_experts = sizes['rank'], sizes['num_experts']
  plain = lambda rank: functools.partial(lora.LoRA, rank=rank)

  def mixtures(method):
    experts = functools.partial(method, num_experts=num_experts, rank=rank)
    return (
        inject.OutputRule(attention, plain(rank)),
        inject.OutputRule(mlp, experts),
    )

  return {
      MOLORA: mixtures(molora.MoLoRA),
      LORA: (
          inject.OutputRule(
              f'{attention}|{mlp}', plain(sizes['lora_rank'])
          ),
      ),
      PUBLISHED: mixtures(published.PublishedMoLoRA),
  }


def with_rules(
    experiment: experiment_lib.Experiment,
    rules: tuple[inject.OutputRule, ...],
) -> experiment_lib.Experiment:
  """The same experiment with other adapters."""
  model = experiment.model
  model = dataclasses.replace(model, module=model.module.clone(rules=rules))
  return dataclasses.replace(experiment, model=model)
