# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT method `MOE_PEFT`: routed experts. Importing registers it.

PEFT knows none of these methods, has no plug-in mechanism and a closed list of
methods, to which this file adds one. Written for peft 0.21.
"""

import dataclasses
import re
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import peft_types
from torch import nn

# Exported folders hold one file: the next lines give way to what they import.
from moe_peft.hf.torch_experts import connect
from moe_peft.hf.torch_experts import make_experts
from moe_peft.hf.torch_experts import run_adapted

NAME = 'MOE_PEFT'


def add_peft_type(name: str) -> None:
  """Adds a member to the enum `PeftType`.

  `register_peft_method` insists on one, and transformers reads its `.value`.
  """
  cls = peft_types.PeftType
  if name in cls.__members__:
    return
  member = str.__new__(cls, name)
  member._name_, member._value_ = name, name
  member._sort_order_ = len(cls.__members__)
  cls._member_names_.append(name)
  cls._member_map_[name] = member
  cls._value2member_map_[name] = member
  if name not in cls.__dict__:  # From Python 3.12 on members are attributes.
    type.__setattr__(cls, name, member)


add_peft_type(NAME)


@dataclasses.dataclass
class MoePeftConfig(PeftConfig):
  """Configuration of the adapter.

  Attributes:
    target_modules: Regular expression of all adapted modules.
    groups: Modules with equal experts: 'modules', a regular expression, and
      the options of `Experts`.
    format_version: Version of this configuration.
    exclude_modules: Of PEFT, unused.
    modules_to_save: Of PEFT, unused.
    layers_to_transform: Of PEFT, unused.
    layers_pattern: Of PEFT, unused.
  """

  target_modules: str | None = None
  groups: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  format_version: int = 1
  exclude_modules: str | None = None
  modules_to_save: list[str] | None = None
  layers_to_transform: list[int] | None = None
  layers_pattern: str | None = None

  def __post_init__(self):
    super().__post_init__()
    self.peft_type = peft_types.PeftType[NAME]
    if self.format_version != 1:
      raise ValueError(
          f'this adapter has format {self.format_version}; a newer version of '
          'moe-peft-jax reads it'
      )

  def spec(self, module: str) -> dict[str, Any]:
    """Options of the experts of a module."""
    for group in self.groups:
      if re.fullmatch(group['modules'], module):
        return group
    raise ValueError(f'no group of the configuration holds {module}')


class MoePeftLayer(nn.Module, BaseTunerLayer):
  """A dense layer, or an activation, with the experts of each adapter."""

  adapter_layer_names = ('moe_peft_experts',)

  def __init__(self, base_layer, adapter_name, config, spec, device):
    super().__init__()
    self.base_layer = base_layer
    self.moe_peft_experts = nn.ModuleDict()
    self._disable_adapters = False
    self._active_adapter = adapter_name
    self.merged_adapters = []
    self.update_layer(adapter_name, config, spec, device)

  def update_layer(self, adapter_name, config, spec, device):
    """Adds the experts of one more adapter."""
    experts = make_experts(spec)
    if not any(parameter.is_meta for parameter in experts.parameters()):
      experts.reset_parameters()
      # Experts and routers are float32, whatever the dtype of the base.
      if device is not None:
        experts.to(device)
    self.moe_peft_experts[adapter_name] = experts
    self.set_adapter(
        self.active_adapters, inference_mode=config.inference_mode
    )

  def forward(self, inputs, *args, **kwargs):
    experts = []
    if not self.disable_adapters:
      experts = [
          self.moe_peft_experts[name]
          for name in self.active_adapters
          if name in self.moe_peft_experts
      ]
    return run_adapted(self.base_layer, experts, inputs, *args, **kwargs)

  def merge(self, *args, **kwargs):
    """Refuses: what depends on the token has no place in a weight."""
    raise NotImplementedError(
        'token-routed experts cannot be merged into the weights; `python -m '
        'moe_peft hf export RUN --collapse data.jsonl` makes an ordinary LoRA '
        'of them, with a measured loss'
    )

  def unmerge(self):
    """Does nothing: nothing can be merged."""

  def __repr__(self):
    return 'moe_peft.' + super().__repr__()


class MoePeftModel(BaseTuner):
  """Puts the experts on the modules of a model."""

  prefix = 'moe_peft_'
  tuner_layer_cls = MoePeftLayer
  target_module_mapping: dict[str, list[str]] = {}

  def _create_and_replace(
      self, config, adapter_name, target, target_name, parent, current_key,
      **unused,
  ):
    spec = config.spec(current_key)
    # An activation has no parameters; its block has.
    owner = target if any(True for _ in target.parameters()) else parent
    device = next(owner.parameters()).device
    device = None if device.type == 'meta' else device
    if isinstance(target, MoePeftLayer):
      target.update_layer(adapter_name, config, spec, device)
      return
    new = MoePeftLayer(target, adapter_name, config, spec, device)
    if adapter_name not in self.active_adapters:
      new.requires_grad_(False)
    self._replace_module(parent, target_name, new, target)

  @classmethod
  def _remove_adapter_name_from_key(cls, key, adapter_name):
    # PEFT expects it near the end; where experts share a layer, it is not.
    scope = f'{cls.prefix}experts.'
    return key.replace(f'{scope}{adapter_name}.', scope)

  def _post_injection_hook(self, model, config, adapter_name):
    super()._post_injection_hook(model, config, adapter_name)
    connect(model)

  def _replace_module(self, parent, child_name, new_module, child):
    setattr(parent, child_name, new_module)


if peft_types.PeftType[NAME] not in PEFT_TYPE_TO_TUNER_MAPPING:
  peft_types.register_peft_method(
      name=NAME.lower(), config_cls=MoePeftConfig, model_cls=MoePeftModel
  )
