# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A T5 with routed experts for `trust_remote_code`: torch and transformers."""

import re

from torch import nn
from transformers import T5Config
from transformers import T5ForConditionalGeneration

# Exported folders hold one file: the next lines give way to what they import.
from moe_peft.hf.torch_experts import Experts
from moe_peft.hf.torch_experts import run_adapted


class MoePeftT5Config(T5Config):
  """T5's configuration with `moe_peft_groups`, as in `adapter_config.json`."""

  model_type = 'moe_peft_t5'
  moe_peft_groups: list | None = None


class AdaptedLinear(nn.Linear):
  """A dense layer with experts; its own weight keeps its name."""

  def __init__(self, layer, spec):
    nn.Module.__init__(self)
    self.in_features, self.out_features = layer.in_features, layer.out_features
    self.weight, self.bias = layer.weight, layer.bias
    self.experts = Experts(spec)

  def forward(self, inputs):
    return run_adapted(super().forward, [self.experts], inputs)


class AdaptedActivation(nn.Module):
  """An activation function with experts."""

  def __init__(self, layer, spec):
    super().__init__()
    self.layer = layer
    self.experts = Experts(spec)

  def forward(self, inputs):
    return run_adapted(self.layer, [self.experts], inputs)


class MoePeftT5ForConditionalGeneration(T5ForConditionalGeneration):
  """T5 with token-routed experts on the modules that the groups name."""

  config_class = MoePeftT5Config

  def __init__(self, config):
    super().__init__(config)
    for name, layer in list(self.named_modules()):
      for spec in config.moe_peft_groups or ():
        if re.fullmatch(spec['modules'], name):
          dense = isinstance(layer, nn.Linear)
          adapted = (AdaptedLinear if dense else AdaptedActivation)(layer, spec)
          parent, _, leaf = name.rpartition('.')
          setattr(self.get_submodule(parent), leaf, adapted)
    self.post_init()
