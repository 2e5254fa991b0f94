# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads an exported folder in torch and compares it with its fixture."""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any
import warnings

import numpy as np

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import lora_config
from moe_peft.hf import networks
from moe_peft.hf import xlora_config
from moe_peft.hf import xlora_format

# The largest difference that passes, in units of the largest logit.
TOLERANCE = 1e-5
# AdaMoLE divides by sums that are barely above zero, which magnifies last bits
# tenfold (docs/huggingface.md), in every program.
_THRESHOLD_TOLERANCE = 1e-4
_SECONDS = 5.0  # For an answer of the Hub.


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Largest differences of logits, torch against JAX.

  Attributes:
    model: The difference of the model.
    base: The difference of the base without the adapter; None if the folder
      holds no adapter, or one with parts of the base.
    effect: How far the adapter moves a logit.
    size: The largest logit.
    tolerance: Tolerance of a difference, in units of `size`.
  """

  model: float
  base: float | None
  effect: float
  size: float
  tolerance: float = TOLERANCE

  @property
  def equal(self) -> bool:
    # A NaN is not equal to anything.
    return self.model <= self.tolerance * self.size

  @property
  def same_base(self) -> bool:
    return self.base is None or self.base <= TOLERANCE * self.size


def verify(folder: Path, base: str = '', offline: bool = False) -> Verdict:
  """Compares a folder with its fixture.

  Args:
    folder: What `export` wrote.
    base: Name or folder of the base of an adapter; by default the one that
      lies in the folder, else the one that the adapter names.
    offline: Whether to look for that one on this machine only.

  Raises:
    errors.UserError: If it is no exported folder or cannot be loaded, also
      because neither this machine nor the Hub has the base.
  """
  if (folder / 'router.safetensors').is_file():
    raise errors.UserError(
        f'{folder} was exported with --format experts, which promises no '
        'equality; there is nothing to verify.', where=folder,
    )
  expected = fixture.read(folder)
  for name in ('torch', 'transformers'):
    folders.import_extra(name, 'verify runs the model in torch')
  model, adapter = load(folder, base, offline)
  largest = lambda x: float(np.abs(fixture.real(expected, x)).max())
  ours, base_logits = expected['logits'], expected['base_logits']
  difference = largest(_logits(model, expected) - ours)
  without = None
  # `base_logits` have what was trained beside the adapters (modules_to_save),
  # which `disable_adapter` takes away.
  own = model.peft_config['default'] if adapter else None
  if adapter and not getattr(own, 'modules_to_save', None):
    with model.disable_adapter():
      plain = _logits(model, expected)
    without = largest(plain - base_logits)
  effect, size = largest(ours - base_logits), largest(ours)
  return Verdict(difference, without, effect, size, _tolerance(folder))


def _tolerance(folder: Path) -> float:
  """The tolerance for a folder, which depends on its routers."""
  for name in (folders.ADAPTER_CONFIG, base_config.FILE):
    file = folder / name
    if file.is_file() and b'"threshold"' in file.read_bytes():
      return _THRESHOLD_TOLERANCE
  return TOLERANCE


def load(
    folder: Path, base: str = '', offline: bool = False
) -> tuple[Any, bool]:
  """Loads an exported folder in float32; returns it, and if it is an adapter.

  No code of the folder runs: what it holds is the code of this package.
  """
  import torch
  import transformers

  # transformers would warn of a tied embedding that its own configuration asks
  # for.
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  options = {'dtype': torch.float32, 'local_files_only': offline}
  if not (folder / folders.ADAPTER_CONFIG).is_file():
    file = folder / base_config.FILE
    config = folders.read_json(file)
    lora_config.check_names(file, config)
    auto = _model_class(config)
    return _from_pretrained(auto, folder, **options).eval(), False
  peft = folders.import_extra('peft', 'the folder holds an adapter')
  file = folder / folders.ADAPTER_CONFIG
  config = folders.read_json(file)
  lora_config.check_names(file, config)
  if config.get('peft_type') == 'MOE_PEFT':
    from moe_peft.hf import peft_tuner

    assert peft_tuner.NAME == 'MOE_PEFT'  # Importing registered it.
  own = folder / 'base'
  name = base or (str(own) if own.is_dir() else '')
  name = name or config.get('base_model_name_or_path')
  if not isinstance(name, str) or not name:
    raise errors.UserError(
        f'The adapter of {folder} does not name its base.', where='--base',
        remedy='Give it with --base.',
    )
  if not Path(name).is_dir():
    options['local_files_only'] = offline or not _is_on_hub(name)
    if options['local_files_only'] and not _is_cached(name):
      raise errors.UserError(
          f'{name} is not on this machine, and the Hub does not give it.',
          where='--base', remedy='Give the folder of the base with --base.',
      )
  decoder = config.get('task_type') == 'CAUSAL_LM'
  auto = 'AutoModelForCausalLM' if decoder else 'AutoModelForSeq2SeqLM'
  model = _from_pretrained(getattr(transformers, auto), name, **options)
  options = {}
  if config.get('peft_type') == xlora_config.KIND:
    model.config.use_cache = False
    options['config'] = xlora_format.config_of(folder, config)
  try:
    with warnings.catch_warnings():
      # peft asks for an attribute that transformers is about to rename.
      warnings.simplefilter('ignore', FutureWarning)
      model = peft.PeftModel.from_pretrained(model, folder, **options)
      return model.eval(), True
  except Exception as error:
    raise errors.UserError(
        f'The adapter of {folder} does not fit the base {name}, or is damaged: '
        f'{_first_lines(error, 2)}', where='--base',
        remedy='Give its own base with --base, or export it again.',
    ) from error


def _model_class(config: dict[str, Any]) -> Any:
  """The class that loads a model of this configuration."""
  import transformers

  kind, base = config.get('model_type'), config.get('moe_peft_base')
  if kind == 'moe_peft_t5':  # As version 0.2 wrote it.
    kind, base = 'moe_peft', 'T5ForConditionalGeneration'
  if kind == 'moe_peft':
    from moe_peft.hf import remote_model

    known = networks.ARCHITECTURES
    if base not in known:
      raise base_config.unsupported('moe_peft_base', base, f'one of {known}')
    return remote_model.with_experts(getattr(transformers, base))[1]
  if str(config.get('architectures', '')).find('ForCausalLM') >= 0:
    return transformers.AutoModelForCausalLM
  return transformers.AutoModelForSeq2SeqLM


def _is_on_hub(name: str) -> bool:
  """Whether the Hub can be asked for a model; transformers would try long."""
  import huggingface_hub

  try:
    huggingface_hub.HfApi().model_info(name, timeout=_SECONDS)
  except Exception:  # No network, no such name, none that we may see.
    return False
  return True


def _is_cached(name: str) -> bool:
  # transformers asks the Hub again and again, even for local files only.
  import huggingface_hub

  try:
    file = huggingface_hub.try_to_load_from_cache(name, 'config.json')
  except ValueError:  # The name is none that the Hub could have.
    return False
  return isinstance(file, str)


def _from_pretrained(auto, name, **options):
  try:
    return auto.from_pretrained(name, **options)
  except Exception as error:  # Files that are damaged raise whatever there is.
    raise errors.UserError(
        f'{name} cannot be loaded ({_first_lines(error, 1)}).', where='--base',
        remedy='Fetch or export it again; an adapter needs its base: give its '
        'folder with --base.',
    ) from error


def _first_lines(error: Exception, number: int) -> str:
  lines = str(error).strip().splitlines()[:number]
  return ' '.join([type(error).__name__, *lines])


def _logits(model: Any, expected: dict[str, np.ndarray]) -> np.ndarray:
  import torch

  names = ('input_ids', 'attention_mask', 'decoder_input_ids')
  inputs = {
      name: torch.from_numpy(expected[name]).long()
      for name in names
      if name in expected
  }
  with torch.no_grad():
    return model(**inputs).logits.numpy()


def measure(folder: Path) -> Verdict | None:
  """Verifies a folder and writes the figure into its card.

  Returns:
    The verdict, or None if it cannot be had here: torch is not installed, or
    the base is not on this machine.
  """
  packages = ('torch', 'transformers', 'peft')
  if not all(importlib.util.find_spec(name) for name in packages):
    return None
  try:
    verdict = verify(folder, offline=True)
  except errors.UserError:
    return None
  versions = ', '.join(
      f'{name} {importlib.metadata.version(name)}' for name in packages
  )
  with (folder / 'README.md').open('a', encoding='utf-8') as card:
    card.write(
        f'\nMeasured: largest difference {verdict.model:.2g} ({versions}).\n'
    )
  return verdict


def describe(folder: Path, verdict: Verdict) -> str:
  """One or two lines for the command line."""
  said = f'above {verdict.tolerance:g} of the largest'
  said = 'equal' if verdict.equal else said
  lines = [
      f'{folder}: largest difference {verdict.model:.3g} ({said}) of logits '
      f'up to {verdict.size:.3g}; the adapter moves them by up to '
      f'{verdict.effect:.3g}'
  ]
  if not verdict.same_base:
    lines.append(
        f'The base alone differs by {verdict.base:.3g}: it is not the one that '
        'was trained on.'
    )
  return '\n'.join(lines)
