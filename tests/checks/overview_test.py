# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of methods, on a small decoder."""

import json

from moe_peft.checks import overview
from moe_peft.cli import methods

MODEL = '--gin_file=gin/models/tiny_llama.gin'


def test_a_row_says_what_a_method_is_on_a_model(capsys):
  methods.main([
      MODEL, '--gin.NAME=SCAN_LAYERS=True', '--budget=30000', '--json', 'lora',
      'mov', 'ttlora', 'comol', 'expert_choice', 'pissa',
  ])
  rows = {row['method']: row for row in json.loads(capsys.readouterr().out)}
  lora, mov, ttlora, comol, refused, pissa = rows.values()
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
  assert 'encoder' in refused['refusal'] and not refused['trainable']


def test_the_table_has_a_line_for_each_and_a_reason_for_others(capsys):
  methods.main([MODEL, '--gin.NAME=SCAN_LAYERS=True', 'full', 'expert_choice'])
  out = capsys.readouterr().out
  assert 'full' in out and 'merged' in out
  assert 'not here: expert_choice: ' in out
  assert {'lora', 'goat', 'full'} <= set(overview.names())
