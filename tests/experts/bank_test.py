# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Banks: LoRAs of other ranks, scales and sites on one base."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.cli import bank as command
from moe_peft.core import adapted_sites
from moe_peft.experts import bank
from moe_peft.experts import bank_base
from moe_peft.experts import bank_card
from moe_peft.experts import bank_experts
from moe_peft.experts import bank_file
from moe_peft.experts import bank_peft
from moe_peft.hf import folders
from moe_peft.hf import import_base
from moe_peft.hf import peft_format
from moe_peft.methods import bank as bank_method
from moe_peft.methods import dora
from moe_peft.methods import lora
from moe_peft.methods import mlae
from moe_peft.methods import retrieval
from moe_peft.methods import spectral
from moe_peft.report import similarity
from moe_peft.training import bases
from tests import refusals
from tests.experts import banks
from tests.hf import adapted


@pytest.mark.slow
@pytest.mark.parametrize('family', ['t5', 'llama'])
@pytest.mark.parametrize('layout', ['t5', 'scan'])
def test_loras_of_other_ranks_scales_and_sites_become_one_bank(
    tmp_path, family, layout
):
  sources, base = banks.write_all(tmp_path, family, layout)
  made = bank.build(sources, base, tmp_path / 'bank')
  assert [(x.name, x.rank, x.checked) for x in made.experts] == [
      ('all', 3, 'name'), ('few', 2, 'name'), ('one', 1, 'name')
  ]
  _, params = bank.load(tmp_path / 'bank')
  for index, found in enumerate(banks.updates(family).values()):
    for path in (x.removesuffix('/lora_a') for x in params if 'lora_a' in x):
      ours = params[f'{path}/lora_a'][index] @ params[f'{path}/lora_b'][index]
      want = found.get(path.removesuffix('/adapter'), 0 * ours)
      np.testing.assert_allclose(ours, want, atol=1e-5, err_msg=path)
  stored = bases.read_arrays(tmp_path / 'bank')
  base_arrays = bases.read_arrays(bases.find(base))
  for path, array in base_arrays.items():
    np.testing.assert_array_equal(stored[path], array)
  number = sum(x.size for x in params.values())
  adapters = [x for x in stored if '/adapter/' in x]
  assert sum(stored[x].size for x in adapters) == number
  assert ('/layers/' not in adapters[0]) and (
      layout == 't5' or adapters[0].split('/')[0] == adapters[0].split('/')[1]
  )


def test_an_adapter_where_a_bank_has_none_is_not_left_out(tmp_path):
  _, base = banks.write_all(tmp_path, 't5')
  base, layer = bank_base.read(base), 'decoder/layers_0/mlp/wo'
  base.check_layers(tmp_path, [layer])
  with refusals.refused('--from', tmp_path, 'decoder/logits_dense'):
    base.check_layers(tmp_path, [layer, 'decoder/logits_dense'])


@pytest.mark.parametrize('family', ['llama', 'phi3'])
def test_experts_are_added_and_taken_out(tmp_path, family):
  sources, base = banks.write_all(tmp_path, family)
  folder = tmp_path / 'bank'
  bank.build(sources[:2], base, folder)
  before = bank.load(folder)[1]
  bank.add(folder, [f'last={sources[2]}'])
  made, grown = bank.load(folder)
  assert made.names == ['all', 'few', 'last']
  assert made.rank == 3  # Of Phi, folders of PEFT have three layers in one.
  for path, array in before.items():
    np.testing.assert_allclose(
        grown[path][:2], array, atol=1e-6, err_msg=path
    )
  bank.remove(folder, ['last'])
  made, again = bank.load(folder)
  assert made.names == ['all', 'few']
  assert again.keys() == before.keys()
  with refusals.refused('nobody', 'all, few'):
    bank.remove(folder, ['nobody'])
  with refusals.refused(folder):
    bank.remove(folder, ['all', 'few'])
  with refusals.refused('--from', 'few'):
    bank.add(folder, [sources[1]])
  assert bank_file.read(folder).names == ['all', 'few']


def test_columns_that_do_not_go_together_are_refused(tmp_path):
  sources, base = banks.write_all(tmp_path, 'llama')
  bank.build(sources[:2], base, tmp_path / 'bank')
  end = '/adapter/lora_a'
  widths = {
      path.removesuffix(end): array.shape[1]
      for path, array in bank.load(tmp_path / 'bank')[1].items()
      if path.endswith(end)
  }
  for more, left_out in ((0, min(widths)), (1, '')):
    for number, source in enumerate(sources[:2]):
      gates = {
          path: np.ones(width + more * number, np.float32)
          for path, width in widths.items() if path != left_out
      }
      file = Path(source) / 'gates.safetensors'
      safetensors_numpy.save_file(gates, file)
    with refusals.refused('--from', 'gates', left_out):
      bank.build(sources[:2], base, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_experts_may_have_the_names_of_routers(tmp_path):
  """PEFT's own routers are told by what they are."""
  sources, base = banks.write_all(tmp_path, 'llama')
  loras = tmp_path / 'loras'
  for old, new in (('few', 'xlora'), ('one', 'arrow_router')):
    (loras / old).rename(loras / new)
  made = bank.build([str(loras)], base, tmp_path / 'bank')
  assert made.names == ['all', 'arrow_router', 'xlora']
  config = json.loads((loras / 'xlora' / folders.ADAPTER_CONFIG).read_text())
  for changes in ({'arrow_config': {'top_k': 2}}, {'peft_type': 'XLORA'}):
    folders.write_json(
        loras / 'xlora' / folders.ADAPTER_CONFIG, {**config, **changes}
    )
    found = bank_peft.experts_in(loras)
    assert [name for name, _ in found] == ['all', 'arrow_router']


def test_what_is_of_another_base_is_refused(tmp_path):
  sources, base = banks.write_all(tmp_path, 'llama')
  file = tmp_path / 'loras/one' / folders.ADAPTER_CONFIG
  fields = json.loads(file.read_text())
  file.write_text(json.dumps({**fields, 'base_model_name_or_path': 'x/other'}))
  out = tmp_path / 'bank'
  with refusals.refused('--from', 'x/other', banks.NAME, '--unchecked'):
    bank.build(sources, base, out)
  with refusals.refused('--base', tmp_path / 'nowhere'):
    bank.build(sources[:1], str(tmp_path / 'nowhere'), out)
  assert not out.exists()
  made = bank.build(sources, base, out, unchecked=True)
  assert made.experts[2].checked == 'shapes'
  (tmp_path / 'wide').mkdir()
  wide = adapted.make('lora', adapted.LLAMA.replace(mlp_dim=48))
  peft_format.write_adapter(tmp_path / 'wide', wide, wide.sites, banks.NAME)
  with refusals.refused(tmp_path / 'wide', 'another base'):
    bank.add(out, [str(tmp_path / 'wide')])
  with refusals.refused('--from', 'no folder'):
    bank.add(out, [str(tmp_path / 'nowhere')])
  with refusals.refused('--base', import_base.HF_CONFIG_FILE):
    (tmp_path / 'base' / import_base.HF_CONFIG_FILE).unlink()
    bank.build(sources, base, tmp_path / 'more')
  with refusals.refused('--from', tmp_path / 'hf'):
    bank.add(out, [str(tmp_path / 'hf')])


def test_a_run_of_t5x_is_to_be_exported_first(tmp_path):
  (tmp_path / 'checkpoint_3' / 'state').mkdir(parents=True)
  (tmp_path / 'config.gin').write_text('')
  with refusals.refused('--from', tmp_path, 'T5X', 'hf export'):
    bank_experts.of_run('one', tmp_path, trust=False)


def test_runs_have_the_scale_of_their_method_or_are_refused():
  run = Path('runs/x')
  scale = lambda adapter: bank_experts._scales(
      run, {'mlp/wo': adapted_sites.TracedSite(adapter)}
  )['mlp/wo']
  assert scale(lora.LoRA(rank=4, alpha=6.0)) == 1.5
  assert scale(lora.LoRA(rank=4, alpha=6.0, rank_stabilized=True)) == 3.0
  for one in (bank_method.GatedExpert, retrieval.IndexedExpert):
    assert scale(one(rank=4, alpha=6.0)) == 1.5
  # One pair is not all that these compute.
  for other in (dora.DoRA(), spectral.PiSSA(), mlae.MLAE()):
    with refusals.refused('--from', run, 'mlp/wo', type(other).__name__):
      scale(other)


def test_the_card_tells_the_licence_and_quotes_what_it_was_given(tmp_path):
  sources, base = banks.write_all(tmp_path, 'llama')
  card = tmp_path / 'loras/all/README.md'
  card.write_text('---\nlicense: apache-2.0\ntags: []\n---\n\nlicense: mit\n')
  bank.build(sources, base, tmp_path / 'bank')
  made = bank_file.read(tmp_path / 'bank')
  assert [x.licence for x in made.experts] == ['apache-2.0', '', '']
  again = bank.build([str(tmp_path / 'bank')], base, tmp_path / 'again')
  assert again.experts == made.experts  # Ranks and layers of their own, too.
  text = (tmp_path / 'bank/README.md').read_text()
  assert '| apache-2.0 |' in text and '| unknown |' in text
  record = bank_file.Record('a', '<b>|\n# x', 'peft', 'name')
  odd = bank_file.Bank((record,), {}, '<i>', {}, 't5', 1)
  bank_card.write(tmp_path, odd)
  text = (tmp_path / 'README.md').read_text()
  assert '<b>' not in text and '<i> ' not in text and '\n# x' not in text


def test_show_prints_and_draws(tmp_path, capsys):
  sources, base = banks.write_all(tmp_path, 'llama')
  bank.build(sources, base, tmp_path / 'bank')
  command.main(
      ['show', str(tmp_path / 'bank'), '--out', str(tmp_path / 'x.svg')]
  )
  printed = capsys.readouterr().out
  assert 'few' in printed and '+1.00' in printed
  assert (tmp_path / 'x.svg').read_text().startswith('<?xml')
  means = similarity.mean(bank.load(tmp_path / 'bank')[1])
  np.testing.assert_allclose(means, means.T)
  np.testing.assert_allclose(np.diag(means), 1.0)


def test_who_is_prepared_for_which_router_is_said(tmp_path, capsys):
  sources, base = banks.write_all(tmp_path, 'llama')
  folder = tmp_path / 'bank'
  made = bank.build(sources, base, folder)
  assert bank.routers(folder, made) == [] == bank.lacking(folder, made)
  ends = '/adapter/lora_a'
  gates = {
      path.removesuffix(ends): np.ones(array.shape[1], np.float32)
      for path, array in bank.load(folder)[1].items() if path.endswith(ends)
  }
  for source in sources[:2]:
    safetensors_numpy.save_file(gates, Path(source) / 'gates.safetensors')
  given = [f'--from={source}' for source in sources]
  command.main(['build', *given[:2], '--base', base, '--out',
                str(tmp_path / 'ready')])
  assert 'methods/bank_phatgoose.gin' in capsys.readouterr().out
  command.main(['add', str(tmp_path / 'ready'), given[2]])
  assert 'methods/bank.gin' in capsys.readouterr().out
  command.main(['show', str(tmp_path / 'ready')])
  said = ' '.join(capsys.readouterr().out.split())
  assert 'one without gates: gin/methods/bank_phatgoose.gin' in said


def test_names_in_the_file_of_a_stranger_stay_in_its_folder(tmp_path):
  record = bank_file.Record('../one', 'one', 'peft', 'name')
  made = bank_file.Bank([record], {}, '', {}, 't5', 2)
  made.write(tmp_path)
  with refusals.refused(tmp_path / bank_file.FILE, '../one'):
    bank_file.read(tmp_path)


@pytest.mark.slow
def test_a_layout_that_there_is_not_is_refused(tmp_path):
  record = bank_file.Record('one', 'one', 'peft', 'name')
  bank_file.Bank([record], {}, '', {}, 'x', 2).write(tmp_path)
  with refusals.refused(tmp_path / bank_file.FILE, '"layout"', 'unrolled'):
    bank_file.read(tmp_path)
