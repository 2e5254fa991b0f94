# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported folder, as the Hub reads it."""

from collections.abc import Mapping, Sequence
import html
import json
from pathlib import Path

from moe_peft.hf import folders
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

BASE_FOLDER = 'base'
_INSTALL = {
    'peft': 'pip install torch transformers "peft>=0.21,<0.22"',
    'transformers': 'pip install torch transformers',
}
_TUNER = """\
import sys
sys.path.insert(0, folder)
import moe_peft_tuner  # registers the PEFT method MOE_PEFT
"""
_ADAPTER = """\
base = {auto}.from_pretrained({base})
model = PeftModel.from_pretrained(base, folder)
"""
_NO_CACHE = """\
base = {auto}.from_pretrained({base})
base.config.use_cache = False  # The first pass has none.
model = PeftModel.from_pretrained(base, folder)
"""
# How each kind is loaded. Kinds that are not here are not for transformers.
_LOAD = {
    'LORA': _ADAPTER,
    'IA3': _ADAPTER,
    'XLORA': _NO_CACHE,
    'MOE_PEFT': _TUNER + _ADAPTER,
    'merged': 'model = {auto}.from_pretrained(folder)\n',
    'full': 'model = {auto}.from_pretrained(folder, trust_remote_code=True)\n',
}
_GENERATE = """\

tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
"""


def write(
    folder: Path,
    trained: trained_lib.Trained,
    sites: Sequence[sites_lib.AdaptedSite],
    kind: str,
    notes: Sequence[str],
) -> None:
  """Writes README.md.

  Args:
    folder: Where to; the tokenizer's files are there already.
    trained: The model.
    sites: Its adapters.
    kind: PEFT type of the adapter, or 'merged', 'full', 'experts', 'gguf'.
    notes: Paragraphs on what must be known, parity first.
  """
  library = 'transformers' if kind in ('merged', 'full') else 'peft'
  # The name may come from somebody else's file: it is put on one line here, and
  # quoted where YAML or Python reads it.
  base = ' '.join(trained.base_model.split())
  title = sites_lib.methods(sites) if sites else 'Fine-tuned'
  text = _front_matter(trained, base, sites, kind, library)
  name = html.escape(base) or 'a base without a name on the Hub'
  text += f'# {title} on {name}\n\n{_table(trained.facts, sites)}'
  if kind in _LOAD:
    tokenizer = any((folder / x).is_file() for x in folders.TOKENIZER_FILES)
    use = _snippet(kind, trained.network.auto, base, tokenizer)
    text += f'\n## Use\n\n    {_INSTALL[library]}\n\n```python\n{use}```\n'
  text += '\n## What to know\n\n' + '\n\n'.join(notes) + '\n'
  (folder / 'README.md').write_text(text, encoding='utf-8')


def _snippet(kind: str, auto: str, base: str, tokenizer: bool) -> str:
  """Python that loads the folder, and answers if it has a tokenizer."""
  code = 'folder = "."  # This folder, or its name on the Hub.\n'
  load = _LOAD[kind].format(auto=auto, base=json.dumps(base) if base else (
      f'folder + "/{BASE_FOLDER}"'
  ))
  if 'PeftModel' in load:
    code = f'from peft import PeftModel\n{_import(auto, tokenizer)}\n\n{code}'
  else:
    code = f'{_import(auto, tokenizer)}\n\n{code}'
  return code + load + (_GENERATE if tokenizer else '')


def _import(auto: str, tokenizer: bool) -> str:
  names = f'{auto}, AutoTokenizer' if tokenizer else auto
  return f'from transformers import {names}'


def _front_matter(
    trained: trained_lib.Trained, base: str,
    sites: Sequence[sites_lib.AdaptedSite], kind: str, library: str,
) -> str:
  tags = sorted({site.method.lower() for site in sites})
  if any(site.routed for site in sites):
    tags.append('mixture-of-experts')
  if library == 'peft' and base:
    tags.insert(0, f'base_model:adapter:{base}')
  if kind in ('MOE_PEFT', 'full'):
    tags.append('custom_code')
  content = {'base_model': base} if base else {}
  content['library_name'] = 'llama.cpp' if kind == 'gguf' else library
  if trained.network.pipeline:
    content['pipeline_tag'] = trained.network.pipeline
  content['tags'] = [*tags, 'jax']
  # JSON is YAML.
  lines = [f'{key}: {json.dumps(value)}' for key, value in content.items()]
  return '\n'.join(['---', *lines, '---', '', ''])


def _table(
    facts: Mapping[str, str], sites: Sequence[sites_lib.AdaptedSite]
) -> str:
  rows = dict(facts)
  if sites:
    rows['method'] = sites_lib.methods(sites)
    rows['adapted layers'] = str(len(sites))
  for label, key in (
      ('experts', 'num_experts'), ('rank', 'rank'), ('alpha', 'alpha')
  ):
    values = sorted({s.spec[key] for s in sites if key in s.spec})
    if values:
      rows[label] = ', '.join(f'{value:g}' for value in values)
  routers = [site.spec['router'] for site in sites if site.routed]
  if routers:
    rows['router'] = ', '.join(sorted({x['selection'] for x in routers}))
  body = ''.join(f'| {label} | {value} |\n' for label, value in rows.items())
  return f'| | |\n| --- | --- |\n{body}'
