# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported folders compute in torch what JAX computes; controls do not."""

import dataclasses
import functools
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.cli import flags
from moe_peft.cli import hf as hf_command
from moe_peft.core import capacity
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.hf import export
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import formats
from moe_peft.hf import merge
from moe_peft.hf import sites
from moe_peft.hf import verify
from moe_peft.methods import adamole
from moe_peft.methods import expert_choice
from moe_peft.methods import mola
from moe_peft.methods import molora
from tests import refusals
from tests.hf import adapted

WEIGHTS = folders.ADAPTER_WEIGHTS


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Function from method, format and family to a folder, written once."""

  @functools.cache
  def write(method, file_format, family='t5'):
    folder = tmp_path_factory.mktemp(f'{method}_{file_format}') / 'out'
    export.export(adapted.make(method, family), folder, file_format)
    return folder

  return write


def copy(folder, target):
  """Copies an exported folder, its base included."""
  import shutil

  shutil.copytree(folder, target)
  return target


def check(folder):
  """Asserts that a folder verifies, and that its adapter does something."""
  verdict = verify.verify(folder)
  assert verdict.effect > 0.1
  assert verdict.equal and verdict.same_base


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['t5', 'scan'])
def test_a_tied_relu_model_keeps_its_head(tmp_path, layout, request):
  config = adapted.CONFIG.replace(
      logits_via_embedding=True,
      mlp_activations=('relu',),
      scan_layers=layout == 'scan',
  )
  export.export(adapted.make('ia3', config), tmp_path / 'out', 'merged')
  written = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert written['tie_word_embeddings'] is True
  assert written['feed_forward_proj'] == 'relu'
  tensors = safetensors_numpy.load_file(tmp_path / 'out' / folders.WEIGHTS)
  assert 'lm_head.weight' not in tensors
  request.getfixturevalue('hf')  # Parity needs torch; the above does not.
  check(tmp_path / 'out')


def torch_inputs(hf, rows=4):
  """Ids with padding in the odd rows."""
  rng = np.random.default_rng(5)
  ids = rng.integers(3, 384, (rows, 12))
  ids[1::2, 7:] = 0
  decoder = rng.integers(3, 384, (rows, 5))
  decoder[:, 0] = 0
  return hf.tensor(ids), hf.tensor(decoder)


def run(hf, model, ids, decoder):
  """Logits of a torch model."""
  with hf.no_grad():
    return model(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        decoder_input_ids=decoder,
    ).logits


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize('method', ['mixed', 'lora', 'ia3'])
def test_peft_saves_what_it_loaded_bit_for_bit(exported, tmp_path, hf, method):
  folder = exported(method, 'peft')
  model, _ = verify.load(folder)
  model.save_pretrained(tmp_path / 'again')
  before = safetensors_numpy.load_file(folder / WEIGHTS)
  after = safetensors_numpy.load_file(tmp_path / 'again' / WEIGHTS)
  assert sorted(before) == sorted(after)
  for name, array in before.items():
    np.testing.assert_array_equal(array, after[name])


@pytest.mark.hf
def test_padding_and_batch_order_are_irrelevant(exported, hf):
  model, _ = verify.load(exported('mixed', 'peft'))
  ids, decoder = torch_inputs(hf)
  logits = run(hf, model, ids, decoder)
  padded = hf.nn.functional.pad(ids, (0, 6))
  order = hf.tensor([2, 0, 3, 1])
  np.testing.assert_allclose(
      run(hf, model, padded, decoder), logits, atol=1e-5
  )
  np.testing.assert_allclose(
      run(hf, model, ids[order], decoder[order]), logits[order], atol=1e-5
  )


@pytest.mark.hf
def test_all_ways_to_load_give_the_same_model(exported, hf):
  import peft
  import transformers

  folder = exported('mixed', 'peft')
  ids, decoder = torch_inputs(hf)
  model, _ = verify.load(folder)
  expected = run(hf, model, ids, decoder)
  auto = transformers.AutoModelForSeq2SeqLM
  base = lambda: auto.from_pretrained(folder / 'base')
  loaded = base()
  plain = run(hf, loaded.eval(), ids, decoder)
  loaded.load_adapter(str(folder))
  second = peft.PeftModel.from_pretrained(base(), folder)
  second.load_adapter(folder, adapter_name='second')
  second.set_adapter('second')
  ways = {
      'AutoPeft': peft.AutoPeftModelForSeq2SeqLM.from_pretrained(folder),
      'Auto': auto.from_pretrained(folder),
      'load_adapter': loaded,
      'low_cpu_mem_usage': peft.PeftModel.from_pretrained(
          base(), folder, low_cpu_mem_usage=True
      ),
      'second adapter': second,
  }
  for way, other in ways.items():
    logits = run(hf, other.eval(), ids, decoder)
    np.testing.assert_array_equal(logits, expected, err_msg=way)
  with second.disable_adapter():
    np.testing.assert_array_equal(run(hf, second, ids, decoder), plain)
  second.delete_adapter('second')
  second.set_adapter('default')
  np.testing.assert_array_equal(run(hf, second, ids, decoder), expected)
  with pytest.raises(NotImplementedError, match='cannot be merged'):
    second.merge_and_unload()


SHIPPED = """
    import contextlib, io, os, pathlib, sys
    for name in ('jax', 'moe_peft'):
      sys.modules[name] = None  # They must not be needed.
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    for folder in sys.argv[1:]:
      os.chdir(folder)
      card = pathlib.Path('README.md').read_text()
      code = card.split('```python\\n')[1].split('```')[0]
      code = code.replace('trust_remote_code', 'dtype=torch.float32, '
                          'trust_remote_code')
      namespace = {'torch': torch}
      with contextlib.redirect_stdout(io.StringIO()) as answer:
        exec(code, namespace)
      assert answer.getvalue().strip(), code
      arrays = load_file('parity.safetensors')
      logits = arrays.pop('logits'), arrays.pop('base_logits')
      with torch.no_grad():
        found = namespace['model'](**{
            name: torch.tensor(x).long() for name, x in arrays.items()
        }).logits.numpy()
      real = arrays['attention_mask'] > 0
      if 'decoder_input_ids' in arrays:
        real = slice(None)
      print(np.abs(found - logits[0])[real].max() / np.abs(logits[0]).max())
"""


@pytest.mark.slow
@pytest.mark.hf
def test_the_code_of_cards_runs_without_us_and_jax(exported, tmp_path, hf):
  folders_ = [
      exported('mixed', 'peft'),
      exported('lora', 'peft', 'llama'),
      exported('mixed', 'full', 'llama'),
      exported('ia3', 'merged'),
  ]
  result = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(SHIPPED), *map(str, folders_)],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env={
          'PATH': '/usr/bin:/bin',
          'HF_HOME': str(tmp_path),
          'HF_HUB_OFFLINE': '1',
          'OMP_NUM_THREADS': '1',
      },
      check=False,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  differences = [float(line) for line in result.stdout.split()]
  assert len(differences) == len(folders_)
  assert max(differences) < verify.TOLERANCE


@pytest.mark.hf
def test_a_folder_is_loaded_in_the_type_that_it_was_written_in(tmp_path, hf):
  """Transformers 5 writes `dtype`, and reads it before `torch_dtype`."""
  import transformers

  code = {'auto_map': {'AutoModelForCausalLM': 'modeling_llama.OfTheBase'}}
  llama = adapted.FAMILIES['llama2'] | {'dtype': 'bfloat16'} | code
  export.export(adapted.make('lora', llama), tmp_path / 'out', 'merged')
  model = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / 'out', trust_remote_code=True
  )
  assert model.dtype == hf.float32
  check(tmp_path / 'out')


@pytest.mark.slow
@pytest.mark.hf
def test_what_trains_beside_adapters_is_part_of_them(tmp_path, hf):
  base = adapted.make('lora', 'llama')
  export.export(base, tmp_path / 'base', 'peft')
  changed = [
      'decoder/decoder_norm/scale',
      'decoder/layers_1/pre_mlp_layer_norm/scale',
      'decoder/logits_dense/kernel',
  ]
  params = base.params | {path: 2 * base.params[path] for path in changed}
  trained = dataclasses.replace(
      base, params=params, changed=changed, base_model='some/base'
  )
  export.export(trained, tmp_path / 'out', 'peft')
  verdict = verify.verify(tmp_path / 'out', str(tmp_path / 'base' / 'base'))
  assert verdict.equal and verdict.effect > 0.1
  for path, name in (
      ('decoder/layers_0/mlp/wo/kernel', 'down_proj'),
      ('token_embedder/embedding', 'embed_tokens'),
  ):
    config = adapted.LLAMA.replace(logits_via_embedding=True)
    tied = adapted.make('lora', config)
    other = dataclasses.replace(tied, changed=[path], base_model='some/base')
    with refusals.refused('TRAINABLE_REGEX', name, '--format full'):
      export.export(other, tmp_path / 'other', 'peft')


def change_tensors(folder, change):
  """Applies `change` to the adapter's tensors of a folder."""
  tensors = safetensors_numpy.load_file(folder / WEIGHTS)
  change(tensors)
  safetensors_numpy.save_file(tensors, folder / WEIGHTS)


def swap_projections(folder):
  """Exchanges the routers of the queries of two layers."""

  def change(tensors):
    one = 'encoder.block.0.layer.0.SelfAttention.q.moe_peft_experts.router'
    two = 'encoder.block.1.layer.0.SelfAttention.q.moe_peft_experts.router'
    one, two = f'base_model.model.{one}', f'base_model.model.{two}'
    tensors[one], tensors[two] = tensors[two], tensors[one]

  change_tensors(folder, change)


def forget_scale(folder):
  """Leaves alpha / rank out."""
  change_config(folder, 'alpha', lambda group: group['rank'])


def forget_routing(folder):
  """Averages the experts instead."""

  def change(tensors):
    for name in tensors:
      if name.endswith('.router'):
        tensors[name] = np.zeros_like(tensors[name])

  change_tensors(folder, change)


def swap_vectors(folder):
  """Exchanges the vectors of an activation and of the layer above's."""

  def change(tensors):
    one, two = (
        f'base_model.model.decoder.block.{layer}.layer.2.DenseReluDense.act'
        '.moe_peft_experts.scaling'
        for layer in range(2)
    )
    tensors[one], tensors[two] = tensors[two], tensors[one]

  change_tensors(folder, change)


def change_config(folder, key, value):
  """Changes an option in all groups that have it."""
  file = folder / folders.ADAPTER_CONFIG
  config = json.loads(file.read_text())
  for group in config['groups']:
    if key in group:
      group[key] = value(group)
  file.write_text(json.dumps(config))


@pytest.mark.hf
@pytest.mark.parametrize(
    'damage', [swap_projections, forget_scale, forget_routing, swap_vectors]
)
def test_damaged_folders_fail_verification(
    exported, tmp_path, hf, damage, capsys
):
  folder = copy(exported('mixed', 'peft'), tmp_path / 'damaged')
  damage(folder)
  assert hf_command.main(['verify', str(folder)]) == 1
  assert 'above 1e-05' in capsys.readouterr().out


@pytest.mark.hf
def test_verify_succeeds_and_prints_the_difference(exported, hf, capsys):
  assert hf_command.main(['verify', str(exported('mixed', 'peft'))]) == 0
  assert 'largest difference' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.hf
def test_another_base_fails_verification(exported, hf, tmp_path, capsys):
  export.export(adapted.make('lora', seed=1), tmp_path / 'other', 'peft')
  folder = str(exported('mixed', 'peft'))
  other = str(tmp_path / 'other' / 'base')
  assert hf_command.main(['verify', folder, '--base', other]) == 1
  assert 'not the one that was trained on' in capsys.readouterr().out


@pytest.mark.parametrize('method', ['molora', 'mov', 'mode', 'bottleneck'])
def test_routed_methods_refuse_to_be_merged(tmp_path, method):
  with refusals.refused('--format merged', '--collapse', '--format peft'):
    export.export(adapted.make(method), tmp_path / 'out', 'merged')
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('router', 'where', 'name'),
    [
        (
            {
                'select': selection.TopK(k=1),
                'capacity': capacity.Capacity(
                    capacity_factor=1.0, at_evaluation=True
                ),
            },
            'capacity.Capacity.at_evaluation',
            '--gin.capacity.Capacity.at_evaluation=False',
        ),
        (
            {
                'select': expert_choice.ChooseTokens(),
                'capacity': capacity.Capacity(
                    capacity_factor=1.0, group_size=2
                ),
            },
            'capacity.Capacity.group_size',
            '--gin.capacity.Capacity.group_size=None',
        ),
    ],
)
def test_routing_between_rows_is_refused_by_name(
    tmp_path, router, where, name
):
  rules = (
      adapted.rule(
          'encoder/.*/query', molora.MoLoRA, router, num_experts=2, rank=2
      ),
  )
  site = 'MoLoRA (at encoder/layers_0/attention/query)'
  for file_format in formats.FORMATS:
    with refusals.refused(where, site, name):
      export.export(adapted.make(rules), tmp_path / 'out', file_format)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('method', [mola.MoLA, adamole.AdaMoLE])
def test_experts_by_depth_in_a_scan_are_those_of_each_layer(method):
  by_depth = functools.partial(mola.by_depth, method, (2, 3))
  rules = (adapted.rule('.*/(query|wo)', by_depth),)
  one, scanned = (adapted.make(rules, x).sites for x in ('t5', 't5_scan'))
  assert [x.path for x in one] == [x.path for x in scanned]
  assert {x.spec['num_experts'] for x in scanned} == {2, 3}
  for x, y in zip(one, scanned, strict=True):
    assert x.spec['num_experts'] == y.spec['num_experts']
    assert x.spec['router'] == y.spec['router']  # Its threshold depends on it.
    shapes = [{k: v.shape for k, v in z.tensors.items()} for z in (x, y)]
    assert shapes[0] == shapes[1]


def test_unknown_adapters_and_routers_are_refused(tmp_path):
  class Own(molora.MoLoRA):
    pass

  class OwnRouter(routing.Router):

    def __call__(self, *args):
      return super().__call__(*args)

  rules = (adapted.rule('.*/query', Own, rank=2),)
  with refusals.refused('ADAPTER_RULES', 'Own (at encoder', 'MoLoRA'):
    export.export(adapted.make(rules), tmp_path / 'out', 'peft')
  own_router = functools.partial(
      molora.MoLoRA, num_experts=2, rank=2, router_factory=OwnRouter
  )
  rules = (inject.OutputRule('.*/query', own_router),)
  with refusals.refused('router_factory', 'OwnRouter'):
    export.export(adapted.make(rules), tmp_path / 'out', 'peft')


def test_a_failing_export_leaves_nothing_behind(tmp_path, monkeypatch):
  monkeypatch.setattr(
      fixture, 'write', lambda *_: (_ for _ in ()).throw(OSError(28))
  )
  with refusals.refused(tmp_path / 'out'):
    export.export(adapted.make('lora'), tmp_path / 'out', 'peft')
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 'file').write_text('x')
  with refusals.refused('--out', tmp_path):
    export.export(adapted.make('lora'), tmp_path, 'peft')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.slow
def test_configs_hold_no_local_path_where_the_hub_has_the_base(
    tmp_path, monkeypatch
):
  for name in ('torch', 'transformers', 'peft'):
    monkeypatch.setitem(sys.modules, name, None)  # Export needs none of them.
  trained = adapted.make('mixed', base_model='google/flan-t5-nano')
  export.export(trained, tmp_path / 'out', 'peft')
  files = {p.name for p in (tmp_path / 'out').iterdir()}
  assert files == {
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'moe_peft_tuner.py',
      'parity.safetensors',
      'tokenizer_config.json',
  }
  for name in ('README.md', 'adapter_config.json'):
    text = (tmp_path / 'out' / name).read_text()
    assert str(tmp_path) not in text
    assert 'google/flan-t5-nano' in text
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'base_model: "google/flan-t5-nano"' in card
  assert 'import moe_peft_tuner' in card
  assert 'IA3' not in card and 'MoLoRA and MoV' in card


@pytest.mark.slow
def test_the_name_of_a_base_is_quoted(tmp_path):
  name = 'x"\nlicense: not-ours\nprint("ran")'
  export.export(adapted.make('lora', base_model=name), tmp_path / 'out', 'peft')
  card = (tmp_path / 'out' / 'README.md').read_text().splitlines()
  assert not [x for x in card if x.startswith(('license', 'print("ran'))]


def test_experts_are_written_one_by_one_and_labelled(exported):
  folder = exported('mixed', 'experts')
  assert 'Not equal' in (folder / 'README.md').read_text()
  trained = adapted.make('mixed')
  query = next(s for s in trained.sites if s.path.endswith('0/attention/query'))
  name = 'encoder.block.0.layer.0.SelfAttention.q'
  routers = safetensors_numpy.load_file(folder / 'router.safetensors')
  np.testing.assert_array_equal(
      routers[f'{name}.router'], query.tensors['router'].T
  )
  with refusals.refused(folder, '--format experts'):
    verify.verify(folder)


def test_missing_packages_are_named(exported, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with refusals.refused('torch', 'moe-peft-jax[hf]'):
    verify.verify(exported('lora', 'peft'))


def test_sites_are_read_from_the_adapters_themselves():
  trained = adapted.make('molora_options')
  by_path = {site.path: site for site in trained.sites}
  query = by_path['encoder/layers_1/attention/query']
  assert query.spec['router'] == {
      'score': 'sigmoid',
      'selection': 'top_k',
      'num_selected_experts': 2,
      'renormalise': True,
      'max_threshold': 0.25,
      'balancing_bias': True,
      'bias_in_gate': True,
  }
  assert query.tensors['lora_a'].shape == (4, 24, 2)
  # Equal weights for all make one LoRA of all ranks.
  value = by_path['decoder/layers_0/encoder_decoder_attention/value']
  assert (value.spec['rank'], value.spec['router']) == (6, None)
  assert sites.native(trained.sites) is None


def test_merging_keeps_the_layout():
  config = adapted.CONFIG.replace(scan_layers=True)
  trained = adapted.make('lora', config)
  merged = merge.merged_params(trained, trained.sites)
  assert {k: v.shape for k, v in merged.items()} == {
      k: v.shape for k, v in trained.base_params.items()
  }
  path = 'encoder/encoder/attention/query'
  difference = merged[f'{path}/kernel'] - trained.params[f'{path}/kernel']
  lora_a = trained.params[f'{path}/adapter/lora_a'][0, 1]
  lora_b = trained.params[f'{path}/adapter/lora_b'][0, 1]
  np.testing.assert_allclose(
      difference[:, 1].reshape(24, 48), 8 / 3 * lora_a @ lora_b, atol=1e-6
  )


@pytest.mark.slow
def test_the_command_line_names_bad_folders(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['hf', 'verify', str(tmp_path)])
  with pytest.raises(SystemExit) as exit_info:
    flags.run(hf_command.main)
  assert exit_info.value.code == 2
  assert 'parity.safetensors' in capsys.readouterr().err
