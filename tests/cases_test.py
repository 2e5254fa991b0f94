# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders, tokenizers and adapters that strangers got wrong, or right.

Each was once read in silence, ended in a trace, or ran.
"""

import contextlib
import json
import time

import gin
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import seqio

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import hf
from moe_peft.data import vocabularies
from moe_peft.data import vocabulary_checks
from moe_peft.data.sets import words  # noqa: F401  (registers tasks)
from moe_peft.hf import export
from moe_peft.hf import import_base
from moe_peft.hf import import_experts
from moe_peft.hf import lora_config
from moe_peft.hf import verify
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from tests import refusals
from tests.hf import adapted
from tests.hf import conftest as t5_models
from tests.hf import import_decoder_test as llama_models
from tests.training import tiny

LLAMA = {
    **llama_models.SMALL,
    'vocab_size': 32,
    'num_hidden_layers': 1,
    'pad_token_id': 0,
}
T5 = {
    **t5_models.SMALL,
    'vocab_size': 40,
    'num_layers': 1,
    'num_decoder_layers': 1,
}


def write_tokenizer(folder, num_ids=32, **changes):
  """A word a letter; ids 0 to 3 are special."""
  special = ['<pad>', '<s>', '</s>', '<unk>']
  vocabulary = [*special, *(chr(ord('a') + i) for i in range(num_ids - 4))]
  content = {
      'version': '1.0', 'truncation': None, 'padding': None,
      'added_tokens': [
          {'id': i, 'content': x, 'single_word': False, 'lstrip': False,
           'rstrip': False, 'normalized': False, 'special': True}
          for i, x in enumerate(special[:3])
      ],
      'normalizer': None, 'pre_tokenizer': {'type': 'Whitespace'},
      'post_processor': None, 'decoder': None,
      'model': {'type': 'WordLevel', 'unk_token': '<unk>',
                'vocab': {x: i for i, x in enumerate(vocabulary)}},
      **changes,
  }  # fmt: skip
  (folder / 'tokenizer.json').write_text(json.dumps(content))


def llama(folder, num_ids=32, **changes):
  """A folder of a small LLaMA with a tokenizer."""
  tensors = llama_models.random_tensors(LLAMA)
  llama_models.write_model(folder, {**LLAMA, **changes}, tensors)
  write_tokenizer(folder, num_ids)
  return folder


def model_gin(folder, out):
  import_base.import_base(folder, out, file_format='safetensors')
  return (out / 'model.gin').read_text()


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('eos_token_id', 2.0),
        ('eos_token_id', True),
        ('eos_token_id', 32),
        ('eos_token_id', -1),
        ('eos_token_id', []),
        ('eos_token_id', {'id': 2}),
        ('eos_token_id', ['2']),
        ('eos_token_id', "2\nimport os\nX = @os.system()"),
        ('bos_token_id', 'import os'),
        ('bos_token_id', 32),
        ('bos_token_id', [1, 2]),
        ('num_attention_heads', 0),
        ('num_attention_heads', '4'),
        ('num_attention_heads', 10**400),
        ('num_hidden_layers', 10**9),
        ('num_hidden_layers', 13),
        ('num_hidden_layers', 1.0),
        ('num_key_value_heads', '2\nimport os'),
        ('num_key_value_heads', 0),
        ('num_key_value_heads', 3),
        ('head_dim', 0),
        ('head_dim', [8]),
        ('vocab_size', 2**40),
        ('rms_norm_eps', "1\nimport os"),
        ('rms_norm_eps', float('nan')),
        ('rms_norm_eps', -1.0),
        ('rope_theta', '500'),
        ('rope_theta', float('inf')),
        ('rope_scaling', ['llama3']),
        ('rope_theta', [1]),
        ('tie_word_embeddings', 'false'),
        ('attention_bias', 0),
        ('hidden_act', ['silu']),
        ('model_type', ['llama']),
        ('model_type', None),
    ],
)
def test_fields_of_a_llama_are_typed_and_bounded(field, value, tmp_path):
  folder = llama(tmp_path / 'hf', **{field: value})
  start = time.monotonic()
  with refusals.refused(field) as info:
    import_base.import_base(folder, tmp_path / 'base')
  assert time.monotonic() - start < 5 and len(str(info.value)) < 400
  assert [x.name for x in tmp_path.iterdir()] == ['hf']


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('num_layers', 10**9),
        ('num_decoder_layers', 10**9),
        ('num_decoder_layers', 0),
        ('d_kv', False),
        ('dropout_rate', '0.1\nimport os'),
        ('feed_forward_proj', {}),
        ('tie_word_embeddings', 1),
        ('scale_decoder_outputs', 'no'),
        ('relative_attention_num_buckets', '32'),
        ('relative_attention_max_distance', 10**10),
        ('decoder_start_token_id', 2),
        ('pad_token_id', 1),
    ],
)
def test_fields_of_a_t5_are_typed_and_bounded(field, value, tmp_path):
  tensors = t5_models.random_tensors(T5)
  folder = t5_models.write_model(tmp_path / 'hf', {**T5, field: value}, tensors)
  with refusals.refused(field):
    import_base.import_base(folder, tmp_path / 'base')


@pytest.mark.parametrize(
    'content',
    ['[' * 100_000, '1', 'NaN', '{"a"', '"x"', '{"a": ["\\ud800"]}',
     '{"a":' * 200 + '1' + '}' * 200],
)
def test_a_config_that_is_no_object_is_named(content, tmp_path):
  (tmp_path / 'config.json').write_text(content)
  with refusals.refused(tmp_path / 'config.json'):
    import_base.import_base(tmp_path, tmp_path / 'base')


@pytest.mark.parametrize('file_format', ['orbax', 'safetensors'])
def test_weights_that_are_no_numbers_are_named(file_format, tmp_path):
  """Training would stop at once, and name the learning rate."""
  tensors = llama_models.random_tensors(LLAMA)
  name = 'model.layers.0.mlp.down_proj.weight'
  tensors[name] = tensors[name].copy()
  tensors[name][0, 0] = np.nan
  folder = tmp_path / 'hf'
  llama_models.write_model(folder, LLAMA, tensors)
  write_tokenizer(folder)
  with refusals.refused(folder, 'NaN', 'mlp/wo/kernel'):
    import_base.import_base(folder, tmp_path / 'base', file_format=file_format)
  assert [x.name for x in tmp_path.iterdir()] == ['hf']


@pytest.mark.parametrize(
    'value',
    [{'quant_method': 'bitnet'}, {'quant_method': 'fp8'}, {}, [], 'gptq',
     {'quant_method': ['bitsandbytes']}],
)
def test_what_is_computed_otherwise_than_in_floats_is_named(value, tmp_path):
  folder = llama(tmp_path / 'hf', quantization_config=value)
  with refusals.refused('quantization_config'):
    import_base.import_base(folder, tmp_path / 'base')
  # Of models that read images, the file has it outside.
  config = {'model_type': 'gemma3', 'text_config': dict(LLAMA)}
  (folder / 'config.json').write_text(
      json.dumps({**config, 'quantization_config': value})
  )
  with refusals.refused('quantization_config'):
    import_base.import_base(folder, tmp_path / 'base')


@pytest.mark.parametrize(
    'quantization',
    [{'quant_method': 'bitsandbytes', 'load_in_4bit': True},
     {'load_in_8bit': True}],
)
def test_floats_that_would_be_quantized_at_load_are_floats(
    quantization, tmp_path, caplog
):
  folder = llama(tmp_path / 'hf', quantization_config=quantization)
  import_base.import_base(folder, tmp_path / 'base', file_format='safetensors')
  assert str(folder / 'config.json') in caplog.text
  # An export that has it would be quantized too.
  assert 'quant' not in (tmp_path / 'base' / 'hf_config.json').read_text()


def test_files_of_a_tokenizer_are_named_where_they_are(tmp_path):
  folder = llama(tmp_path / 'hf')
  for file, wrong in (('tokenizer_config.json', '[]'), ('tokenizer.json', '3')):
    kept = (folder / file).read_text() if (folder / file).exists() else '{}'
    (folder / file).write_text(wrong)
    with pytest.raises(errors.UserError, match=f'{folder / file}'):
      import_base.import_base(folder, tmp_path / 'base')
    (folder / file).write_text(kept)


def test_a_scale_of_zero_is_shown_as_it_is(tmp_path):
  scaling = {'rope_type': 'linear', 'factor': 0}
  with refusals.refused('factor', 'factor 0'):
    import_base.import_base(
        llama(tmp_path / 'hf', rope_scaling=scaling), tmp_path / 'base'
    )


@pytest.mark.parametrize(
    ('field', 'value'),
    [('eos_token', ['</s>']), ('eos_token', {'text': '</s>'}),
     ('bos_token', 7), ('add_bos_token', 'yes')],
)
def test_fields_of_a_tokenizer_are_typed(field, value, tmp_path):
  folder = llama(tmp_path / 'hf')
  fields = {'add_bos_token': True, field: value}
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))
  with refusals.refused(field, 'tokenizer_config.json'):
    import_base.import_base(folder, tmp_path / 'base')


def test_a_row_that_begins_with_a_token_that_is_none(tmp_path, capfd):
  """The library panics, and shows where in Rust it is."""
  folder = llama(tmp_path / 'hf')
  file = folder / 'tokenizer.json'
  begin = {'SpecialToken': {'id': '<gone>', 'type_id': 0}}
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  file.write_text(json.dumps(json.loads(file.read_text()) | {
      'post_processor': {
          'type': 'TemplateProcessing', 'single': [begin, text], 'pair': [],
          'special_tokens': {},
      }
  }))
  with refusals.refused('VOCABULARY_FILE', 'post-processor'):
    import_base.import_base(folder, tmp_path / 'base')
  assert 'panicked' not in capfd.readouterr().err


@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json'])
def test_a_pointer_of_git_is_named(name, tmp_path):
  folder = llama(tmp_path / 'hf')
  (folder / name).write_text('version https://git-lfs.github.com/spec/v1\n')
  where = folder / name if name.startswith('model') else 'VOCABULARY_FILE'
  with refusals.refused(where, name, 'git lfs pull'):
    import_base.import_base(folder, tmp_path / 'base')


@pytest.mark.parametrize('dtype', [np.int64, np.bool_, np.float64])
def test_tensors_of_other_types_are_named(dtype, tmp_path):
  folder = llama(tmp_path / 'hf')
  file = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  safetensors_numpy.save_file({**tensors, 'ids': np.ones(3, dtype)}, file)
  with refusals.refused(folder, 'ids', 'BF16'):
    import_base.import_base(folder, tmp_path / 'base')


@pytest.mark.parametrize(
    'shard',
    ['', '.', '..', '../x', '/x', 'gone', None, 999 * 'x', 200 * 'é', '\ud800'],
)
def test_shards_lie_beside_their_index(shard, tmp_path):
  folder = llama(tmp_path / 'hf')
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'model.norm.weight': shard}}))
  with refusals.refused(index, *(['gone'] if shard == 'gone' else [])):
    import_base.import_base(folder, tmp_path / 'base')


@pytest.mark.parametrize('wrong', ['', 'twice', 'elsewhere', 'nowhere'])
def test_shards_hold_what_their_index_says(wrong, tmp_path):
  folder = llama(tmp_path / 'hf')
  whole = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(whole)
  whole.unlink()
  norm = 'model.norm.weight'
  first, *others = (name for name in tensors if name != norm)
  held = {'a.safetensors': [norm, first], 'b.safetensors': others}
  places = {name: file for file, names in held.items() for name in names}
  # Converters leave a tensor that shares its memory out of the shards alone.
  places['model.shared.weight'] = 'b.safetensors'
  if wrong == 'twice':
    others.append(norm)
  elif wrong == 'elsewhere':
    places[norm] = 'b.safetensors'
  elif wrong == 'nowhere':
    held['a.safetensors'].remove(norm)
  for file, names in held.items():
    safetensors_numpy.save_file({k: tensors[k] for k in names}, folder / file)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  where = {'twice': folder / 'b.safetensors', 'elsewhere': index}
  with (
      refusals.refused(where.get(wrong, 'config.json'), norm)
      if wrong else contextlib.nullcontext()
  ):
    import_base.import_base(
        folder, tmp_path / 'base', file_format='safetensors'
    )


def test_a_llama_begins_and_ends_with_its_own_tokens(tmp_path):
  text = model_gin(llama(tmp_path / 'hf', eos_token_id=[3, 2]), tmp_path / 'x')
  assert '  eos_id = 3\n  stop_ids = (2,)\n' in text
  assert 'BOS_ID = 1\n' in text and 'bos_id = 1.\n' in text
  gin_files.load_gin(
      [str(tmp_path / 'x' / 'model.gin'), 'gin/methods/lora.gin']
  )
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.bos_id == 1 and model.input_vocabulary.eos_id == 3
  assert model.input_vocabulary.stop_ids == (3, 2)


def test_a_task_without_a_vocabulary_takes_that_of_the_base(tmp_path):
  base = tmp_path / 'base'
  import_base.import_base(llama(tmp_path / 'hf'), base)
  (tmp_path / 'rows.jsonl').write_text(LETTERS)
  (tmp_path / 'task.gin').write_text(TASK)
  gin_files.load_gin(
      [str(base / 'model.gin'), 'gin/methods/lora.gin',
       str(tmp_path / 'task.gin')],
      ['local.register_task.name=letters', f'DATA={tmp_path / "rows.jsonl"}'],
  )
  name = gin.query_parameter('%MIXTURE_OR_TASK_NAME').scoped_configurable_fn()
  vocabulary = seqio.get_mixture_or_task(name).output_features[
      'inputs'
  ].vocabulary
  assert vocabulary.tokenizer_file == str(base / 'tokenizer.json')


def test_a_llama_without_an_end_asks_for_one(tmp_path):
  text = model_gin(llama(tmp_path / 'hf', eos_token_id=None), tmp_path / 'x')
  assert '  eos_id = %gin.REQUIRED\n' in text


def test_a_t5_reads_the_tokenizer_of_its_folder(tmp_path):
  tensors = t5_models.random_tensors(T5)
  folder = t5_models.write_model(tmp_path / 'hf', T5, tensors)
  write_tokenizer(folder, 40)
  text = model_gin(folder, tmp_path / 'base')
  assert 'VOCABULARY = @vocabularies.TokenizerVocabulary()' in text
  assert f"VOCABULARY_FILE = '{tmp_path}/base/tokenizer.json'" in text
  assert '  eos_id = 1\n' in text


def test_a_t5_without_a_tokenizer_asks_for_one_unless_it_reads_bytes(tmp_path):
  for size, line in (
      (40, 'VOCABULARY_FILE = %gin.REQUIRED'),
      (384, 'VOCABULARY = @seqio.ByteVocabulary()'),
  ):
    config = {**T5, 'vocab_size': size}
    folder = t5_models.write_model(
        tmp_path / f'hf_{size}', config, t5_models.random_tensors(config)
    )
    assert line in model_gin(folder, tmp_path / f'base_{size}')


@pytest.mark.parametrize(
    'changes',
    [
        {'truncation': {'direction': 'Left', 'max_length': 2,
                        'strategy': 'LongestFirst', 'stride': 0}},
        {'padding': {'strategy': {'Fixed': 8}, 'direction': 'Right',
                     'pad_to_multiple_of': None, 'pad_id': 0,
                     'pad_type_id': 0, 'pad_token': '<pad>'}},
    ],
)
def test_a_tokenizer_neither_cuts_nor_fills(changes, tmp_path):
  pytest.importorskip('tokenizers')
  write_tokenizer(tmp_path, **changes)
  vocabulary = vocabularies.TokenizerVocabulary(
      str(tmp_path / 'tokenizer.json'), 2
  )
  assert list(vocabulary.encode('a b c d')) == [4, 5, 6, 7]


LETTERS = ''.join(
    json.dumps({'inputs': 'a b c', 'targets': x}) + '\n' for x in 'defg'
)
TASK = """
from __gin__ import dynamic_registration
import seqio
from moe_peft.data import local
MIXTURE_OR_TASK_NAME = @local.register_task()
DATA = %gin.REQUIRED
local.register_task:
  train = %DATA
  validation = %DATA
"""


@pytest.mark.parametrize(
    ('num_ids', 'line', 'names'),
    [
        (40, '  vocabulary = %VOCABULARY\n', ('40', '32')),
        (32, '  vocabulary = @seqio.ByteVocabulary()\n',
         ('ByteVocabulary', 'TokenizerVocabulary', '%VOCABULARY')),
    ],
)
def test_a_run_whose_ids_mean_nothing_does_not_begin(
    num_ids, line, names, tmp_path
):
  pytest.importorskip('tokenizers')
  base = tmp_path / 'base'
  import_base.import_base(llama(tmp_path / 'hf', num_ids), base)
  (tmp_path / 'rows.jsonl').write_text(LETTERS)
  (tmp_path / 'task.gin').write_text(TASK + line)
  gin_files.load_gin(
      [str(base / 'model.gin'), 'gin/methods/molora.gin',
       'gin/runs/finetune.gin', str(tmp_path / 'task.gin')],
      [f'local.register_task.name=letters_{num_ids}',
       f'DATA={tmp_path / "rows.jsonl"}',
       f'MODEL_DIR={tmp_path / "run"}', f'INITIAL_CHECKPOINT_PATH={base}',
       "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
       'TRAIN_STEPS=2', 'WARMUP_STEPS=1', 'BATCH_SIZE=8', 'EVAL_BATCH_SIZE=8',
       'NUM_EXPERTS=2', 'RANK=2'],
  )
  with refusals.refused('VOCABULARY', *names):
    run.run_experiment()
  assert not list((tmp_path / 'run').rglob('*.jsonl'))


def test_copies_of_a_vocabulary_are_the_same():
  ours = {'inputs': seqio.ByteVocabulary(extra_ids=7)}
  vocabulary_checks.check('past_tense', ours, 384)
  with refusals.refused('VOCABULARY', '266', '265'):
    vocabulary_checks.check('past_tense', ours, 265)


def write_lora(folder, **changes):
  """A LoRA of two layers of `adapted.CONFIG`."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  tensors = {}
  for layer in range(2):
    module = f'encoder.block.{layer}.layer.0.SelfAttention.q'
    for half, shape in (('A', (2, 24)), ('B', (48, 2))):
      name = f'base_model.model.{module}.lora_{half}.weight'
      tensors[name] = rng.normal(size=shape).astype(np.float32)
  safetensors_numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  config = {
      'peft_type': 'LORA', 'task_type': 'SEQ_2_SEQ_LM', 'r': 2,
      'lora_alpha': 4, 'bias': 'none', 'target_modules': ['q'],
      'base_model_name_or_path': 'some/t5', 'lora_dropout': 0.1,
      'fan_in_fan_out': False, 'init_lora_weights': True, **changes,
  }  # fmt: skip
  (folder / 'adapter_config.json').write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize(
    'changes',
    [
        {}, {'init_lora_weights': 'eva', 'eva_config': {'rho': 2.0}},
        {'init_lora_weights': False}, {'init_lora_weights': 'orthogonal'},
        {'corda_config': None, 'loftq_config': {}, 'layer_replication': None,
         'unheard_of': [], 'use_dora': False, 'lora_bias': False,
         'runtime_config': {'ephemeral_gpu_offload': False}},
        {'target_modules': '.*(q|v)', 'peft_version': '0.21.2'},
    ],
)  # fmt: skip
def test_plain_loras_are_understood(changes, tmp_path):
  folder = write_lora(tmp_path / 'lora', **changes)
  experts = import_experts.read([folder], adapted.CONFIG)
  assert (experts.rank, experts.alpha) == (2, 4.0)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(('init_lora_weights', x) for x in (
            'pissa', 'pissa_niter_16', 'olora', 'OLoRA', 'corda', 'loftq',
            'lora_ga', 'mica', 'unheard of', 1, ['eva'], None,
        )),
        ('peft_type', 'IA3'),
        ('peft_type', ['LORA']),
        ('use_dora', True),
        ('use_qalora', True),
        ('use_rslora', 'yes'),
        ('lora_bias', True),
        ('bias', 'all'),
        ('alora_invocation_tokens', [1, 2]),
        ('layer_replication', [[0, 1], [0, 1]]),
        ('modules_to_save', ['lm_head']),
        ('trainable_token_indices', [3]),
        ('kasa_config', {'rho': 1}),
        ('arrow_config', {'top_k': 3}),
        ('fan_in_fan_out', True),
        ('unheard_of', 'x'),
        ('lora_alpha', 'four'),
        ('lora_alpha', None),
        ('lora_alpha', 0),
        ('lora_alpha', float('nan')),
        ('lora_alpha', 10**400),
        ('r', 2.0),
        ('r', 0),
        ('alpha_pattern', [4]),
        ('alpha_pattern', {'q': 'four'}),
        ('alpha_pattern', {'(': 4}),
        ('alpha_pattern', {r'(q)\1': 4}),
        ('alpha_pattern', {'q' * 501: 4}),
        ('alpha_pattern', {'(.{900}){900}': 4}),
        ('alpha_pattern', {r'\pL': 4}),
        ('alpha_pattern', {'(?=q)q': 4}),
        ('alpha_pattern', {'': 4}),
        ('rank_pattern', {'q': True}),
        ('rank_pattern', 'q'),
        ('target_modules', 7),
        ('target_modules', ['q', 1]),
        ('exclude_modules', {'q': 1}),
    ],
)
def test_what_is_not_understood_of_an_adapter_is_named(field, value, tmp_path):
  folder = write_lora(tmp_path / 'lora', **{field: value})
  with refusals.refused(field, folder / 'adapter_config.json'):
    import_experts.read([folder], adapted.CONFIG)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_adapters_that_are_no_numbers_are_named(value, tmp_path):
  folder = write_lora(tmp_path / 'lora')
  file = folder / 'adapter_model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  name = list(tensors)[-1]
  tensors[name] = np.full_like(tensors[name], value)
  safetensors_numpy.save_file(tensors, file)
  with refusals.refused(folder, 'NaN', name):
    import_experts.read([folder], adapted.CONFIG)


def test_patterns_are_those_of_peft(tmp_path):
  module = 'encoder.block.{}.layer.0.SelfAttention.q'.format
  folder = write_lora(
      tmp_path / 'lora', use_rslora=True, r=7, lora_alpha=5,
      rank_pattern={'q': 2},
      alpha_pattern={r'block\.1\..*\.q': 8, '.*q': 3, 'elf.q': 1, 'Att': 1},
  )
  config = lora_config.read(folder)
  scales = config.scales([module(0), module(1), 'a.v'])
  assert scales == {
      module(0): 3 / 2**0.5, module(1): 8 / 2**0.5, 'a.v': 5 / 7**0.5
  }
  experts = import_experts.read([folder], adapted.CONFIG)
  assert experts.rank == 2


def test_ranks_are_those_of_the_tensors(tmp_path):
  folder = write_lora(tmp_path / 'lora', r=3)
  with refusals.refused(folder, 'rank 3', '(2, 24)'):
    import_experts.read([folder], adapted.CONFIG)


def test_expressions_of_strangers_take_no_time(tmp_path):
  patterns = {'(.*)*' * 20 + f'x{i}': 4 for i in range(200)}
  patterns |= {f'(a|aa|[a-z.]+)+{i}Z': 4 for i in range(200)}
  folder = write_lora(tmp_path / 'lora', alpha_pattern=patterns)
  start = time.process_time()
  import_experts.read([folder], adapted.CONFIG)
  assert time.process_time() - start < 3


def test_so_many_expressions_that_they_take_seconds_are_refused(
    tmp_path, monkeypatch
):
  monkeypatch.setattr(lora_config, '_MAX_SECONDS', 0.01)
  patterns = {f'(.*)*{i}': 4 for i in range(5000)}
  folder = write_lora(tmp_path / 'lora', alpha_pattern=patterns)
  with refusals.refused('alpha_pattern', 'seconds'):
    import_experts.read([folder], adapted.CONFIG)


def test_an_adapter_is_no_place_for_weights_of_the_base(tmp_path):
  trained = adapted.make(
      'molora', base_model='some/t5', changed=['token_embedder/embedding']
  )
  out, rows = tmp_path / 'out', tmp_path / 'rows.jsonl'
  rows.write_text(LETTERS)
  # Embeddings that the output layer shares: no module that PEFT could keep.
  refused = lambda: refusals.refused(
      'TRAINABLE_REGEX', 'trained', '--format full'
  )
  for file_format in ('peft', 'experts'):
    with refused():
      export.export(trained, out, file_format)
  with refused():
    export.export_collapsed(trained, out, rows)
  assert not out.exists()


@pytest.mark.parametrize(
    'changes',
    [
        {'target_modules': '(a|aa)+$'},
        {'target_modules': ['q', '.*']},
        {'target_modules': 7},
        {'exclude_modules': 'q{9}'},
        {'layers_pattern': '(x+x+)+y'},
        {'rank_pattern': {'(.*.*)*q': 2}},
        {'alpha_pattern': {'[q]': 2}},
        {'peft_type': 'MOE_PEFT', 'groups': [{'modules': '(a+)+'}]},
    ],
)
def test_peft_matches_no_expressions_of_strangers(changes, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  folder = write_lora(tmp_path / 'lora', **changes)
  field = list(changes)[-1].replace('groups', 'modules')
  with refusals.refused(field, folder / 'adapter_config.json'):
    verify.load(folder, offline=True)


@pytest.mark.parametrize('base', ['', 'some/other'])
def test_a_hub_that_does_not_answer_is_not_asked_for_long(
    base, tmp_path, monkeypatch
):
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  hub = pytest.importorskip('huggingface_hub')

  def no_network(self, name, timeout):
    assert timeout < 10
    raise OSError('Name or service not known')

  monkeypatch.setattr(hub.HfApi, 'model_info', no_network)
  with refusals.refused('--base', base or 'some/t5', 'folder'):
    verify.load(write_lora(tmp_path / 'lora'), base)


@pytest.mark.parametrize('name', ['x/y")\nprint("', '/no/folder', '../x', 7])
def test_a_base_that_cannot_be_on_this_machine_is_not(name, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  folder = write_lora(tmp_path / 'lora', base_model_name_or_path=name)
  with refusals.refused('--base'):
    verify.load(folder, offline=True)


@pytest.mark.slow
def test_the_export_of_a_run_in_which_everything_trained(tmp_path, capsys):
  config = {
      **t5_models.SMALL, 'vocab_size': 384, 'd_model': 16, 'num_heads': 2,
      'd_kv': 8, 'd_ff': 32, 'num_layers': 1, 'num_decoder_layers': 1,
  }  # fmt: skip
  folder = t5_models.write_model(
      tmp_path / 'hf', config, t5_models.random_tensors(config)
  )
  base, run_dir = tmp_path / 'base', tmp_path / 'run'
  import_base.import_base(folder, base)
  setup = experiment_lib.prepare(
      tiny.experiment(
          run_dir, INITIAL_CHECKPOINT_PATH=str(base), TRAIN_STEPS=2,
          TRAINABLE_REGEX='.*',
      )
  )
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda step, params: None)
  (run_dir / 'config.gin').write_text(gin.config_str())
  out, rows = tmp_path / 'out', tmp_path / 'rows.jsonl'
  rows.write_text(LETTERS)
  command = ['export', str(run_dir), f'--out={out}']
  with refusals.refused('TRAINABLE_REGEX', 'trained', '--format full'):
    hf.main([*command, '--base=some/t5'])
  hf.main([*command, f'--collapse={rows}'])
  assert 'on held-out rows (1), over which no' in capsys.readouterr().out
  # A base of its own, as it was trained.
  assert (out / 'base' / 'model.safetensors').is_file()


@pytest.mark.hf
@pytest.mark.parametrize(
    ('file_format', 'file'),
    [('full', 'model.safetensors'), ('peft', 'adapter_model.safetensors')],
)
def test_damaged_exports_are_refused(file_format, file, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  folder = tmp_path / 'out'
  export.export(adapted.make('lora', 'llama'), folder, file_format)
  path = folder / file
  path.write_bytes(path.read_bytes()[:-9])
  with refusals.refused('--base', folder):
    verify.verify(folder, offline=True)
