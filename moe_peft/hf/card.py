# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model cards (README.md) of exported folders.

Written by us: PEFT's own card would carry the local path of the base.
"""

from collections.abc import Mapping, Sequence
import html
import json
from pathlib import Path

from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_INSTALL = {
    'peft': 'pip install torch transformers "peft>=0.21,<0.22"',
    'transformers': 'pip install torch transformers',
}
_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

base = AutoModelForSeq2SeqLM.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, "DIR")"""
_USES = {
    'LORA': _ADAPTER,
    'IA3': _ADAPTER,
    'MOE_PEFT': """\
import sys
sys.path.insert(0, "DIR")  # or: import moe_peft.hf.peft_tuner
import moe_peft_tuner  # registers the PEFT method MOE_PEFT
""" + _ADAPTER,
    'merged': """\
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("DIR")""",
    'full': """\
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("DIR", trust_remote_code=True)""",
}


def write(
    folder: Path,
    trained: trained_lib.Trained,
    sites: Sequence[sites_lib.AdaptedSite],
    kind: str,
    notes: Sequence[str],
) -> None:
  """Writes README.md.

  Args:
    folder: Where to.
    trained: The model.
    sites: Its adapters.
    kind: PEFT type of the adapter, or 'merged', 'full', 'experts'.
    notes: Paragraphs on what must be known, parity first.
  """
  library = 'transformers' if kind in ('merged', 'full') else 'peft'
  # The name may come from a file of somebody else: it stands in one line here,
  # and quoted where YAML or Python reads it.
  base = ' '.join(trained.base_model.split())
  title = sites_lib.methods(sites) if sites else 'T5'
  text = _front_matter(base, sites, kind, library)
  text += f'# {title} on {html.escape(base) or "a T5 trained from scratch"}\n\n'
  text += _table(trained.facts, sites)
  if kind in _USES:
    use = _USES[kind].replace('BASE', json.dumps(base or 'DIR/base'))
    text += f'\n## Use\n\n    {_INSTALL[library]}\n\n```python\n{use}\n```\n'
  text += '\n## What to know\n\n' + '\n\n'.join(notes) + '\n'
  (folder / 'README.md').write_text(text, encoding='utf-8')


def _front_matter(
    base: str, sites: Sequence[sites_lib.AdaptedSite], kind: str, library: str
) -> str:
  tags = sorted({site.method.lower() for site in sites})
  if any(site.routed for site in sites):
    tags.append('mixture-of-experts')
  if library == 'peft' and base:
    tags.insert(0, f'base_model:adapter:{base}')
  if kind in ('MOE_PEFT', 'full'):
    tags.append('custom_code')
  content = {'base_model': base} if base else {}
  content |= {
      'library_name': library,
      'pipeline_tag': 'text2text-generation',
      'tags': [*tags, 't5', 'jax'],
  }
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
