# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The gin files of a bank, to be given after the run file."""

from collections.abc import Mapping
from pathlib import Path
import textwrap
from typing import Any

from moe_peft.experts import bank_file
from moe_peft.hf import xlora_config

FILE = 'bank.gin'
# In its place, for the method that reads the classifier of an X-LoRA. Other
# methods have macros of the same names, with other values.
XLORA_FILE, XLORA_METHOD = 'xlora.gin', 'bank_xlora.gin'
# Settings that are not its own would make it another classifier, silently.
_SETTINGS = """
from __gin__ import dynamic_registration

from moe_peft.methods import xlora

xlora.TwoPasses.settings = {!r}
"""


def write(
    folder: Path,
    bank: bank_file.Bank,
    sites: str,
    path: Path,
    classifier: xlora_config.Classifier | None,
) -> None:
  """Writes `bank.gin`, and `xlora.gin` where there is a classifier.

  Args:
    folder: Where to write.
    bank: The bank.
    sites: The adapted layers, for SITES.
    path: The base and the experts, for INITIAL_CHECKPOINT_PATH.
    classifier: What weighs the experts.
  """
  values = {
      'SITES': sites, 'NUM_EXPERTS': len(bank.experts), 'RANK': bank.rank,
      'ALPHA': float(bank.rank), 'INITIAL_CHECKPOINT_PATH': str(path),
  }
  methods = 'one of gin/methods/bank*.gin'
  if classifier is None:
    _write(folder / FILE, methods, values)
    return
  methods += f' but {XLORA_METHOD}, which has {XLORA_FILE},'
  _write(folder / FILE, methods, values, _SETTINGS.format(XLORA_FILE))
  _write(folder / XLORA_FILE, f'gin/methods/{XLORA_METHOD}', {
      **values,
      'ALPHA': bank.rank * classifier.scale,
      'LAYERWISE': False,
      'CLASSIFIER_DEPTH': len(classifier.matrices),
      'CLASSIFIER_WIDTH': len(classifier.matrices[-1][0]),
      'CLASSIFIER_DROPOUT': classifier.dropout,
      'TEMPERATURE': classifier.temperature,
      'NUM_SELECTED_EXPERTS': classifier.num_selected or len(bank.experts),
      # Under T5X the classifier comes with the base, too.
      'FRESH_REGEX': 'state/.*',
  })


def _write(
    file: Path, method: str, values: Mapping[str, Any], more: str = ''
) -> None:
  lines = [
      '# Written by `python -m moe_peft bank`. Give it as the last gin file,',
      *textwrap.wrap(
          f'# after a model, {method} and a run file.', 80,
          subsequent_indent='# ',
      ),
      *(f'{name} = {value!r}' for name, value in values.items()),
  ]
  file.write_text('\n'.join([*lines, more]), 'utf-8')
