# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small LoRAs of one base, and banks of them."""

import ast
import dataclasses
import functools
import re

import numpy as np

from moe_peft.experts import bank_arrays
from moe_peft.experts import bank_gin
from moe_peft.hf import formats
from moe_peft.hf import import_base
from moe_peft.hf import peft_format
from moe_peft.hf import trained as trained_lib
from moe_peft.methods import bank as bank_method
from moe_peft.training import bases
from tests.hf import adapted

NAME = 'some/base'
_lora = functools.partial(adapted.rule, cls=adapted.lora.LoRA)
LORAS = {
    'all': 'lora',
    'few': (_lora('.*/(query|wo)', rank=2, alpha=5.0),),
    'one': (_lora('.*/(query|value)', rank=1, alpha=1.0),),
}


def sharpened(params):
  """Experts whose first singular value stands out, as PEFT's Arrow needs."""
  result = dict(params)
  for path in params:
    if path.endswith('/adapter/lora_a'):
      a, b = params[path][0], params[path.replace('lora_a', 'lora_b')][0]
      factors = 0.3 ** np.arange(a.shape[-1], dtype=np.float32)
      a, b = bank_arrays.singular(a, b, a.shape[-1])
      result[path] = (a * 4.0 * factors)[None]
      result[path.replace('lora_a', 'lora_b')] = b[None]
  return result


@functools.cache
def _loras(family):
  made = {}
  for seed, (name, rules) in enumerate(LORAS.items()):
    trained = adapted.make(rules, family, seed)
    made[name] = trained, sharpened(trained.params)
  return made


def write_all(tmp_path, family, layout='t5'):
  """PEFT folders by name, and an imported base of the same sizes."""
  for name, (trained, params) in _loras(family).items():
    trained = dataclasses.replace(trained, params=params)
    folder = tmp_path / 'loras' / name
    folder.mkdir(parents=True)
    peft_format.write_adapter(folder, trained, trained.sites, NAME)
  trained, _ = _loras(family)['all']
  model = tmp_path / 'hf'
  model.mkdir()
  formats.write_model(model, trained, trained.hf_tensors())
  import_base.import_base(model, tmp_path / 'base', layout, 'safetensors', NAME)
  return [f'{tmp_path}/loras/{name}' for name in LORAS], str(tmp_path / 'base')


def updates(family):
  """Of each LoRA what it adds, by layer."""
  return {
      name: {
          site.path: site.spec['alpha'] / site.spec['rank']
          * site.tensors['lora_a'][0] @ site.tensors['lora_b'][0]
          for site in trained_lib.Trained(trained.model, params).sites
      }
      for name, (trained, params) in _loras(family).items()
  }


def macros(file):
  """The values of macros that a gin file of a bank gives."""
  lines = re.findall(r'^([A-Z_]+) = (.*)', file.read_text(), re.MULTILINE)
  return {name: ast.literal_eval(value) for name, value in lines}


def rules_of(folder, **router):
  """The rules that `bank.gin` describes."""
  values = macros(folder / bank_gin.FILE)
  return (adapted.rule(
      values['SITES'], bank_method.Bank, router,
      num_experts=values['NUM_EXPERTS'], rank=values['RANK'],
      alpha=values['ALPHA'],
  ),)  # fmt: skip


def in_jax(folder, family, **router):
  """A `Trained` of a bank under a router that has no parameters."""
  config = adapted.FAMILIES[family]
  return read(folder, config, rules_of(folder, **router))


def read(folder, config, rules):
  """A `Trained` of some rules, of which the bank holds all parameters."""
  trained = adapted.make(rules, config)
  params = bases.load_base(str(folder), trained.params)
  assert params.keys() == trained.params.keys()
  return trained_lib.Trained(
      trained.model, {k: np.asarray(v, np.float32) for k, v in params.items()}
  )


def one_more(tmp_path, family, seed):
  """One more LoRA at all sites: PEFT's Arrow wants the same of all."""
  trained = adapted.make('lora', family, seed)
  trained = trained_lib.Trained(
      trained.model, sharpened(trained.params)
  )
  folder = tmp_path / 'loras' / f'seed{seed}'
  folder.mkdir()
  peft_format.write_adapter(folder, trained, trained.sites, NAME)
  return str(folder)
