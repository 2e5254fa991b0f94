# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer in PyTorch, forward and backward."""

import functools


def _case(make, sizes):
  """Forward and backward of one layer: parameters, inputs.

  Args:
    make: `make(frozen_layer, sizes)` returns a function of inputs and the
      trainable parameters.
    sizes: `features`, `tokens`, `num_experts`, `rank`.

  Returns:
    (step, number of trainable parameters).
  """
  import torch

  features, tokens = sizes['features'], sizes['tokens']
  rows = max(tokens // 256, 1)
  inputs = torch.randn(rows, tokens // rows, features, requires_grad=True)
  cotangent = torch.randn(rows, tokens // rows, features)
  frozen = torch.nn.Linear(features, features, bias=False)
  frozen.requires_grad_(False)
  function, params = make(frozen, sizes)

  def step():
    torch.autograd.grad(function(inputs), [*params, inputs], cotangent)

  return step, sum(p.numel() for p in params)


def matmul(sizes):
  """The frozen layer's product alone, without gradients."""
  import torch

  inputs = torch.randn(sizes['tokens'], sizes['features'])
  kernel = torch.randn(sizes['features'], sizes['features'])
  return lambda: inputs @ kernel, 0


def _frozen(frozen, sizes):
  return frozen, []


def _peft_lora(frozen, sizes):
  """Hugging Face PEFT's LoRA of rank E*r."""
  import peft
  import torch

  config = peft.LoraConfig(
      r=sizes['num_experts'] * sizes['rank'], target_modules=['0'],
      init_lora_weights=False,
  )
  model = peft.get_peft_model(torch.nn.Sequential(frozen), config)
  return model, [p for p in model.parameters() if p.requires_grad]


def _loramoe(frozen, sizes):
  """MoE-PEFT's LoRAMoE: soft routing."""
  from moe_peft.adapters.loramoe import LoraMoeConfig
  from moe_peft.adapters.loramoe.model import LoraMoe

  return _moe_peft_layer(frozen, sizes, LoraMoeConfig, LoraMoe)


def _mola(frozen, sizes):
  """MoE-PEFT's MoLA: two experts selected."""
  from moe_peft.adapters.mola import MolaConfig
  from moe_peft.adapters.mola.model import MolaSparseMoe

  return _moe_peft_layer(frozen, sizes, MolaConfig, MolaSparseMoe)


def _moe_peft_layer(frozen, sizes, config_class, layer_class):
  import torch

  from moe_peft.common.lora_linear import Linear

  layer = Linear(frozen, 'cpu')
  config = config_class.from_config({
      'name': 'a',
      'adapter_name': 'a',
      'task_name': 'casual',
      'r': sizes['rank'],
      'lora_alpha': 16,
      'lora_dropout': 0.05,  # It must not be zero; switched off below.
      'target_modules': ['q_proj'],
      'num_experts': sizes['num_experts'],
  })
  config.adapter_name = 'a'
  mixture = layer_class(frozen.in_features, torch.device('cpu'), config)
  layer.moes_['a'] = mixture
  for expert in range(sizes['num_experts']):
    layer.init_lora_weight(config.expert_config(expert))
  params = list(mixture.gate_.parameters())
  for expert in layer.loras_.values():
    expert.eval()
    params += [p for p in expert.parameters() if p.requires_grad]
  for p in params:
    torch.nn.init.normal_(p, std=0.02)

  def run(inputs):
    return mixture.forward(
        residual=frozen(inputs), hidden_states=inputs, lora_linear=layer
    )

  return run, params


frozen = functools.partial(_case, _frozen)
peft_lora = functools.partial(_case, _peft_lora)
loramoe = functools.partial(_case, _loramoe)
mola = functools.partial(_case, _mola)
