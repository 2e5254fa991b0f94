# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Collapsing routed experts into one LoRA, and what its card says."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.data import chat
from moe_peft.data import rows as rows_lib
from moe_peft.data import template_tokens
from moe_peft.hf import collapse
from moe_peft.hf import export
from moe_peft.hf import folders
from moe_peft.hf import folds
from moe_peft.hf import merge
from tests import refusals
from tests.data import small_chat
from tests.hf import adapted

OBJECTS = [
    {'inputs': f'question {i}', 'targets': 'yes' if i % 2 else 'no', 'task': t}
    for i, t in enumerate(['a', 'b'] * 3)
]
ROWS = [rows_lib.Row(row['inputs'], row['targets']) for row in OBJECTS]
TURNS = [
    {'role': role, 'content': text}
    for role, text in (
        ('system', 'brief'), ('user', 'say one'), ('assistant', 'one'),
        ('user', 'say three'), ('assistant', 'three'),
    )
]


def write_rows(file, rows=OBJECTS):
  """Writes a calibration file."""
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return file


@pytest.mark.slow
@pytest.mark.parametrize('family', ['t5_scan', 'llama'])
def test_with_constant_gates_nothing_is_lost(family):
  trained = adapted.make('molora', family)
  for path in trained.params:  # A router that does not look at the token.
    if path.endswith('router/kernel'):
      trained.params[path][:] = 0
  result = collapse.collapse(trained, ROWS, None, collapse.measure_fn(trained))
  losses = result.losses
  assert abs(losses['collapsed'] - losses['routed']) < 1e-5
  assert abs(losses['base'] - losses['routed']) > 0.05
  assert {site.spec['rank'] for site in result.sites} == {12}


@pytest.mark.slow
def test_layers_of_a_scan_with_fewer_experts_collapse():
  trained = adapted.make('mola', 't5_scan')
  measure = collapse.measure_fn(trained)
  result = collapse.collapse(trained, ROWS, None, measure)
  assert np.isfinite(result.losses['collapsed'])
  _, gates = measure(trained.params, collapse.make_batches(trained, ROWS))
  for site in trained.sites:
    assert gates[site.path].shape == (site.spec['num_experts'],)
    np.testing.assert_allclose(gates[site.path].sum(), 1.0, atol=1e-6)


@pytest.mark.slow
def test_gates_are_means_over_real_tokens():
  trained = adapted.make('molora')
  measure = collapse.measure_fn(trained)
  batches = collapse.make_batches(trained, ROWS)
  loss, gates = measure(trained.params, batches)
  assert set(gates) == {site.path for site in trained.sites}
  for path, gate in gates.items():
    np.testing.assert_allclose(gate.sum(), 1.0, atol=1e-6, err_msg=path)
  # More padding changes nothing.
  padded = [
      {k: np.pad(v, ((0, 0), (0, 5))) for k, v in batch.items()}
      for batch in batches
  ]
  padded_loss, padded_gates = measure(trained.params, padded)
  np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
  for path, gate in padded_gates.items():
    np.testing.assert_allclose(gate, gates[path], atol=1e-6)


@pytest.mark.slow
def test_the_loss_is_measured_on_rows_that_no_gate_saw():
  trained = adapted.make('molora')
  measure = collapse.measure_fn(trained)
  calibration, held_out = collapse.split(ROWS)
  assert (len(calibration), len(held_out)) == (5, 1)
  assert not [row for row in held_out if row in calibration]
  result = collapse.collapse(trained, ROWS, None, measure)
  loss, _ = measure(trained.params, collapse.make_batches(trained, held_out))
  assert result.losses['routed'] == loss
  assert abs(result.cost) > 1e-4
  assert result.worth_it == (result.cost <= collapse.WORTH_IT)
  with refusals.refused('--collapse', 'held out'):
    collapse.split(ROWS[:1])


@pytest.mark.parametrize(
    ('turns', 'num_rows', 'learned'),
    [('each', 4, ['one', 'three'] * 2), ('together', 2, ['onethree'] * 2)],
)
def test_of_conversations_the_answers_count(turns, num_rows, learned, tmp_path):
  """As many tokens as training learns, by the chat of the task."""
  vocabulary = small_chat.vocabulary(tmp_path, small_chat.CHATML)
  trained = adapted.make('molora', 'llama')
  model = dataclasses.replace(
      trained.model, input_vocabulary=vocabulary, output_vocabulary=vocabulary
  )
  tokens = template_tokens.make(vocabulary)
  trained = dataclasses.replace(
      trained, model=model, chat=chat.Chat(tokens, turns)
  )
  file = write_rows(tmp_path / 'rows.jsonl', [{'messages': TURNS}] * 2)
  (batch,) = collapse.make_batches(trained, collapse.read_rows(file)[''])
  assert batch['decoder_loss_weights'].any(1).sum() == num_rows
  end = small_chat.SPECIAL.index(small_chat.END)
  answers = [
      vocabulary.tokenizer.decode([i for i in ids[weights > 0] if i != end])
      for ids, weights in zip(
          batch['decoder_target_tokens'], batch['decoder_loss_weights'],
          strict=True,
      )
  ]
  assert sorted(answers[:num_rows]) == sorted(learned)
  # The lengths are those of the run: a beginning is cut, an answer is not.
  cut = dataclasses.replace(trained, lengths={'inputs': 9, 'targets': 512})
  (short,) = collapse.make_batches(cut, collapse.read_rows(file)[''])
  weights = short['decoder_loss_weights']
  assert weights.sum() == batch['decoder_loss_weights'].sum()
  if turns == 'each':
    given = short['decoder_segment_ids'] - weights
    assert set(given.sum(1)[:num_rows].tolist()) <= {8, 9}
  short = dataclasses.replace(trained, lengths={'inputs': 9, 'targets': 2})
  with refusals.refused('--collapse', '2 tokens'):
    collapse.make_batches(short, collapse.read_rows(file)[''])


def test_a_lower_rank_is_the_best_approximation():
  trained = adapted.make('molora')
  gates = {s.path: np.full(4, 0.25) for s in trained.sites}
  site = trained.sites[0]
  full = folds.weighted(site, gates[site.path])
  low = folds.weighted(site, gates[site.path], 5)
  product = lambda s: s.tensors['lora_a'][0] @ s.tensors['lora_b'][0]
  exact = product(full)
  expected = 4 / 3 * sum(
      site.tensors['lora_a'][e] @ site.tensors['lora_b'][e] for e in range(4)
  )
  np.testing.assert_allclose(exact, expected, atol=1e-5)
  assert low.spec['rank'] == low.spec['alpha'] == 5
  left = np.linalg.svd(exact, compute_uv=False)[5:]
  np.testing.assert_allclose(
      np.linalg.norm(product(low) - exact), np.linalg.norm(left), rtol=1e-4
  )


@pytest.mark.slow
def test_the_card_states_what_it_costs(tmp_path):
  measured = export.export_collapsed(
      adapted.make('molora', base_model='google/t5-nano'),
      tmp_path / 'out',
      write_rows(tmp_path / 'rows.jsonl'),
      rank=6,
      per_task=True,
  )
  assert len(measured) == 2
  for task, collapsed in zip('ab', measured, strict=True):
    losses = collapsed.losses
    folder = tmp_path / 'out' / task
    config = json.loads((folder / folders.ADAPTER_CONFIG).read_text())
    assert (config['peft_type'], config['r']) == ('LORA', 6)
    card = (folder / 'README.md').read_text()
    assert 'Not equal to the trained model' in card
    assert f'{losses["routed"]:.4f} | {losses["collapsed"]:.4f}' in card
  one, two = (
      safetensors_numpy.load_file(
          tmp_path / 'out' / task / folders.ADAPTER_WEIGHTS
      )
      for task in 'ab'
  )
  assert any(not np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.slow
@pytest.mark.hf
def test_peft_computes_the_collapsed_model(tmp_path, hf):
  from moe_peft.hf import verify

  export.export_collapsed(
      adapted.make('molora'),
      tmp_path / 'out',
      write_rows(tmp_path / 'rows.jsonl'),
  )
  verdict = verify.verify(tmp_path / 'out')
  assert verdict.equal
  assert verdict.effect > 0.1


def test_only_low_rank_experts_collapse(tmp_path):
  with refusals.refused('--collapse', 'MoV', 'MoLoRA'):
    export.export_collapsed(
        adapted.make('mov'), tmp_path / 'out', write_rows(tmp_path / 'x.jsonl')
    )
  assert [p.name for p in tmp_path.iterdir()] == ['x.jsonl']


@pytest.mark.parametrize(
    ('content', 'place'),
    [
        ('', ''),
        ('{"inputs": "a", "targets": "b"}\n{"inputs": 1}\n', ', line 2'),
        ('{"inputs": "a", "targets": "b"}\nnot json\n', ', line 2'),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', ', line 1'),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', ', line 1'),
    ],
)
def test_bad_calibration_files_are_named(tmp_path, content, place):
  file = tmp_path / 'rows.jsonl'
  file.write_text(content)
  with refusals.refused(f'{file}{place}'):
    collapse.read_rows(file)
  with refusals.refused(tmp_path / 'absent.jsonl'):
    collapse.read_rows(tmp_path / 'absent.jsonl')


@pytest.mark.slow
def test_a_mean_of_the_experts_is_not_what_merging_gives():
  trained = adapted.make('molora')
  with refusals.refused('--format merged', 'MoLoRA', '--collapse'):
    merge.merged_params(trained, trained.sites)
