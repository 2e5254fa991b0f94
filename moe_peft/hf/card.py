# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model cards (README.md) of exported folders.

Written by us: PEFT's own card would carry the local path of the base.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

_INSTALL = {
    'peft': 'pip install torch transformers "peft>=0.21,<0.22"',
    'transformers': 'pip install torch transformers',
}
_USES = {
    'MOE_PEFT': """\
import sys
sys.path.insert(0, "DIR")  # or: import moe_peft.hf.peft_tuner
import moe_peft_tuner  # registers the PEFT method MOE_PEFT
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

base = AutoModelForSeq2SeqLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "DIR")""",
    'native': """\
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

base = AutoModelForSeq2SeqLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "DIR")""",
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
    base_model: str,
    notes: Sequence[str] = (),
) -> None:
  """Writes README.md.

  Args:
    folder: Where to.
    trained: The model.
    sites: Its adapters.
    kind: PEFT type of the adapter, or 'merged', 'full', 'experts'.
    base_model: Name of the base; may be a folder of the export.
    notes: Paragraphs on what must be known, parity first.
  """
  adapter = kind in ('LORA', 'IA3', 'MOE_PEFT', 'experts')
  library = 'peft' if adapter else 'transformers'
  text = _front_matter(trained, sites, kind, library)
  title = sites_lib.methods(list(sites)) if sites else 'T5'
  text += f'# {title} on {base_model or "a T5 trained from scratch"}\n\n'
  text += _table(trained.facts, sites)
  use = _USES.get('native' if kind in ('LORA', 'IA3') else kind)
  if use is not None:
    use = use.replace('BASE', base_model or 'DIR/base')
    text += f'\n## Use\n\n    {_INSTALL[library]}\n\n```python\n{use}\n```\n'
  text += '\n## What to know\n\n' + '\n\n'.join(notes) + '\n'
  (folder / 'README.md').write_text(text, encoding='utf-8')


def _front_matter(trained, sites, kind, library) -> str:
  tags = sorted({site.method.lower() for site in sites})
  if any(site.routed for site in sites):
    tags.append('mixture-of-experts')
  if library == 'peft' and trained.base_model:
    tags.insert(0, f'base_model:adapter:{trained.base_model}')
  if kind in ('MOE_PEFT', 'full'):
    tags.append('custom_code')
  tags += ['t5', 'jax']
  lines = ['---']
  if trained.base_model:
    lines.append(f'base_model: {trained.base_model}')
  lines += [
      f'library_name: {library}',
      'pipeline_tag: text2text-generation',
      f'tags: [{", ".join(tags)}]',
      '---',
      '',
      '',
  ]
  return '\n'.join(lines)


def _table(facts: Mapping[str, str], sites) -> str:
  rows = dict(facts)
  if sites:
    rows['method'] = sites_lib.methods(list(sites))
    rows['adapted layers'] = str(len(sites))
    specs = [site.spec for site in sites]
    for label, key in (
        ('experts', 'num_experts'), ('rank', 'rank'), ('alpha', 'alpha')
    ):
      values = sorted({spec[key] for spec in specs if key in spec})
      if values:
        rows[label] = ', '.join(f'{value:g}' for value in values)
    selections = sorted(
        {spec['router']['selection'] for spec in specs if spec['router']}
    )
    if selections:
      rows['router'] = ', '.join(selections)
  body = ''.join(f'| {label} | {value} |\n' for label, value in rows.items())
  return f'| | |\n| --- | --- |\n{body}'
