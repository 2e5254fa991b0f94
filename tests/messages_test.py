# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Messages name macros that exist.

Every upper-case name in a text of the package is looked up in the gin files.
"""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'moe_peft').rglob('*.py'))
# Upper-case names that are no macros of gin.
OTHERS = {
    'MODEL_DIR',  # Of every run file, and of T5X's.
    # Of T5X's run files, and what it calls a mean.
    'CHECKPOINT_PATH', 'TRAIN_STEPS_RELATIVE', 'NUM_REAL_TARGET_TOKENS',
    'Q4_1', 'Q8_0',  # Kinds of arrays in GGUF files.
    'PYTHONPATH', 'RUN', 'BOS', 'EOS', 'UTF', 'JSON', 'JSONL', 'TPU', 'TPUS',
}  # fmt: skip


def macros() -> set[str]:
  """Macros that a gin file of ours sets or uses."""
  found = set()
  for folder in ('gin', 'configs'):
    for file in (ROOT / folder).rglob('*.gin'):
      text = re.sub(r'#.*', '', file.read_text(encoding='utf-8'))
      found |= set(re.findall(r'(?:^|%)([A-Z][A-Z0-9_]+)\b', text, re.M))
  return found


def raised_texts(tree: ast.AST) -> list[str]:
  """Texts in what the code raises as a UserError."""
  texts = []
  for node in ast.walk(tree):
    name = getattr(getattr(node, 'func', None), 'attr', '')
    if isinstance(node, ast.Call) and name == 'UserError':
      texts += [
          part.value
          for part in ast.walk(node)
          if isinstance(part, ast.Constant) and isinstance(part.value, str)
      ]
  return texts


@pytest.mark.parametrize(
    'file', FILES, ids=[str(f.relative_to(ROOT)) for f in FILES]
)
def test_messages_name_macros_that_exist(file):
  texts = raised_texts(ast.parse(file.read_text(encoding='utf-8')))
  # A name with an underscore, or one to which a message gives a value.
  names = {
      name
      for text in texts
      for name in (
          *re.findall(r'\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b', text),
          *re.findall(r'\b([A-Z]{2,})(?= ?= )', text),
          *re.findall(r'--gin\.([A-Z][A-Z0-9_]+)', text),
      )
  }
  unknown = names - macros() - OTHERS
  assert not unknown, f'{file} names {sorted(unknown)}, no macro of gin/'
