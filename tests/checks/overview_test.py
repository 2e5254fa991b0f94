# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of methods, on a small decoder."""

import json
import re

import pytest

from moe_peft.checks import overview
from moe_peft.cli import methods

MODEL = '--gin_file=gin/models/tiny_llama.gin'


@pytest.mark.slow
def test_a_row_says_what_a_method_is_on_a_model(capsys):
  methods.main([
      MODEL, '--gin.NAME=SCAN_LAYERS=True', '--budget=30000', '--json', 'lora',
      'mov', 'ttlora', 'comol', 'expert_choice', 'pissa',
  ])
  rows = {row['method']: row for row in json.loads(capsys.readouterr().out)}
  lora, mov, ttlora, comol, choice, pissa = rows.values()
  # 4 layers of width 128: q, out, wi_0, wo and the two shared heads' k and v.
  rank = 30000 // (4 * (2 * 256 + 2 * 192 + 2 * 512))
  assert lora['size'] == f'RANK = {rank}'
  assert lora['trainable'] == rank * 4 * (2 * 256 + 2 * 192 + 2 * 512)
  assert pissa['trainable'] == lora['trainable']
  assert (lora['arxiv'], lora['mergeable']) == ('2106.09685', 'yes')
  assert lora['exports'] == 'peft merged full gguf'
  assert (mov['mergeable'], mov['exports']) == ('no', 'peft full')
  assert (mov['executions'], comol['executions']) == ('one', 'one')
  assert comol['mergeable'] == 'collapsed'
  assert 25000 < ttlora['trainable'] <= 30000
  assert ttlora['executions'] == '' and ttlora['causal'] == 'yes'
  assert 'encoder' in choice['refusal'] and not choice['trainable']


def test_the_table_has_a_line_for_each_and_a_reason_for_others(capsys):
  names = ['full', 'smear', 'expert_choice']
  methods.main([MODEL, '--gin.NAME=SCAN_LAYERS=True', *names])
  out = capsys.readouterr().out
  assert 'full' in out and 'merged' in out
  assert re.search(r'smear .* prompt +one', out)
  assert 'not here: expert_choice: ' in out
  assert {'lora', 'goat', 'full'} <= set(overview.names())


@pytest.mark.slow
def test_a_share_is_one_of_the_base_and_llama_cpp_has_no_dora(capsys):
  scan = '--gin.NAME=SCAN_LAYERS=True'
  methods.main([MODEL, scan, '--json', 'full'])
  base, = json.loads(capsys.readouterr().out)
  methods.main([
      MODEL, scan, '--budget=0.05', '--json', 'lora_fa', 'dora', 'bank_arrow',
  ])
  lora_fa, dora, arrow = json.loads(capsys.readouterr().out)
  # The frozen lora_a are no part of the base.
  one_rank = 4 * (2 * 128 + 2 * 64 + 384 + 128)
  rank = int(0.05 * base['trainable']) // one_rank
  assert lora_fa['size'] == f'RANK = {rank}'
  assert dora['exports'] == 'peft merged full'
  # Nothing of it trains, whatever its size.
  assert (arrow['trainable'], arrow['size'], arrow['refusal']) == (0, '', '')
