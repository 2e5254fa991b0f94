# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoder of a base that also reads images; nothing else of it is read."""

from moe_peft.hf import base_config

# Prefixes of the language model in the files of a model that also reads images,
# as transformers 4 and 5 write them.
_TEXT_PREFIXES = {
    'language_model.lm_head.': 'lm_head.',
    'language_model.model.': 'model.',
    'model.language_model.': 'model.',
    **dict.fromkeys((
        'vision_tower.', 'multi_modal_projector.', 'model.vision_tower.',
        'model.multi_modal_projector.',
    )),
}


def text_config(config: base_config.HfConfig) -> base_config.HfConfig:
  """The decoder of a model that reads images too, else the same file.

  Raises:
    errors.UserError: If there is none.
  """
  if config.get('model_type') != 'gemma3':
    return config
  text = config.get('text_config')
  if not isinstance(text, dict):
    raise base_config.unsupported('text_config', text, 'an object there')
  outer = ('eos_token_id', 'bos_token_id', 'pad_token_id', '_name_or_path')
  return {
      **{name: config[name] for name in outer if name in config},
      **text,
      'model_type': 'gemma3_text',
      'architectures': ['Gemma3ForCausalLM'],
  }


def text_name(name: str) -> str | None:
  """A tensor's name in the language model; None for tensors of the rest."""
  for prefix, plain in _TEXT_PREFIXES.items():
    if name.startswith(prefix):
      return plain and plain + name.removeprefix(prefix)
  return name
