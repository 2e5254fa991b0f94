# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The README.md of a bank."""

import html
import json
from pathlib import Path

from moe_peft.experts import bank_file

_ARROW = '''\
from peft import ArrowConfig
from peft.tuners.lora.arrow import create_arrow_model

model = create_arrow_model(
    base,  # {base}, as transformers loads it.
    [f"experts/{{name}}" for name in {names}],
    ArrowConfig(top_k={k}, router_temperature=1.0, rng_seed=0),
)
'''


def write(folder: Path, bank: bank_file.Bank) -> None:
  """Writes README.md; what comes from the files of others is quoted."""
  header = ('expert', 'from', 'licence', 'rank', 'layers', 'checked by')
  rows = [header, ('---',) * len(header)]
  for x in bank.experts:
    source = f'{x.source} ({x.trained_on})' if x.trained_on else x.source
    rows.append((
        x.name, source, x.licence or 'unknown', str(x.rank), str(x.layers),
        x.checked,
    ))
  table = '\n'.join(f'| {" | ".join(map(_cell, row))} |' for row in rows)
  name = _cell(bank.base_model) or 'a base without a name on the Hub'
  code = _ARROW.format(
      base=json.dumps(bank.base_model or 'the base'),
      names=json.dumps(bank.names), k=min(3, len(bank.experts)),
  )
  served = ' '.join(f'{x}=experts/{x}' for x in bank.names)
  text = (
      f'# {len(bank.experts)} experts on {name}\n\n{table}\n\n'
      f'All have rank {bank.rank} and the same modules; where one was not '
      'trained it is zero. What may be done with the bank is what every '
      'licence above allows.\n\n'
      '`bank.gin` is for moe_peft, with one of `gin/methods/bank*.gin`. '
      '`experts/` holds plain LoRAs: PEFT routes over them with Arrow,\n\n'
      f'```python\n{code}```\n\n'
      f'{_xlora(folder, bank)}vLLM serves them by name: '
      f'`vllm serve BASE --enable-lora --max-lora-rank {bank.rank} '
      f'--lora-modules {served}`.\n'
  )
  (folder / 'README.md').write_text(text, encoding='utf-8')


def _xlora(folder: Path, bank: bank_file.Bank) -> str:
  """What PEFT's X-LoRA does with the bank; nothing where there is none."""
  if bank.classifier:
    return (
        'and `xlora/` is the X-LoRA whose classifier came with them '
        '(`use_cache` must be False; for moe_peft `xlora.gin`). '
    )
  if (folder / 'xlora').is_dir():
    return (
        'and trains an X-LoRA from `xlora/`, which begins as their average '
        '(`use_cache` must be False). '
    )
  return ''


def _cell(text: str) -> str:
  return html.escape(' '.join(text.split())).replace('|', '&#124;')
