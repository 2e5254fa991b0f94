# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The readers of files that others have made, and good files for each."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
from pathlib import Path

from tests.fuzz import data_files
from tests.fuzz import formats
from tests.fuzz import hostile_templates
from tests.fuzz import mutations

_JSON = mutations.seldom_raw(mutations.as_json)
_TENSORS = mutations.seldom_raw(formats.as_safetensors, 0.4)
_LINES = mutations.seldom_raw(mutations.as_json_lines)
_RECORDS = mutations.seldom_raw(mutations.records(mutations.raw), 0.5)
_ARRAYS = mutations.seldom_raw(mutations.zipped(formats.as_array), 0.3)
_TEXT = mutations.seldom_raw(mutations.as_text)


@dataclasses.dataclass(frozen=True)
class Reader:
  """One kind of files.

  Attributes:
    write: Writes a good folder.
    mutate: By the path of a file within it, how it is mutated.
    read: Reads the folder; may write into a second one.
    one_in: Only one input of so many is tried, where reading takes long.
  """

  write: Callable[[Path], None]
  mutate: Mapping[str, mutations.Mutation]
  read: Callable[[Path, Path], object]
  one_in: int = 1


def _write_t5(folder: Path) -> None:
  from tests import cases_test
  from tests.hf import conftest

  config = cases_test.T5
  conftest.write_model(folder, config, conftest.random_tensors(config))
  cases_test.write_tokenizer(folder, 40)


def _write_llama(folder: Path) -> None:
  from tests import cases_test

  cases_test.llama(folder)


def _write_family(name: str, folder: Path) -> None:
  import numpy as np

  from moe_peft.hf import decoder_base
  from moe_peft.hf import entries
  from tests.hf import families_test
  from tests.hf import import_decoder_test

  config = {**families_test.SIZES, **families_test.FAMILIES[name]}
  found = decoder_base.entries(decoder_base.from_hf(config), 't5')
  tensors = {
      name: np.ones(shape, np.float32)
      for name, shape in entries.source_shapes(found).items()
  }
  import_decoder_test.write_model(folder, config, tensors)


def _write_gguf(folder: Path) -> None:
  folder.mkdir(parents=True)
  (folder / 'model.gguf').write_bytes(formats.gguf())


def _write_shards(folder: Path) -> None:
  import ml_dtypes
  import numpy as np
  from safetensors import numpy as safetensors_numpy

  folder.mkdir(parents=True)
  weights = {}
  for name, dtype in (('a', np.float32), ('b', ml_dtypes.bfloat16)):
    file = f'model-{name}.safetensors'
    arrays = {f'{name}.{i}': np.ones((2, i + 1), dtype) for i in range(3)}
    safetensors_numpy.save_file(arrays, folder / file)
    weights |= dict.fromkeys(arrays, file)
  (folder / 'model.safetensors.index.json').write_text(
      json.dumps({'metadata': {'total_size': 72}, 'weight_map': weights})
  )


def _write_adapter(folder: Path) -> None:
  from tests import cases_test

  cases_test.write_lora(
      folder, use_rslora=True, rank_pattern={'q': 2},
      alpha_pattern={r'block\.1\..*\.q': 8, 'Att': 1},
  )


def _write_run(folder: Path) -> None:
  from tests import run_folder

  run_folder.write_run(folder)
  (folder / 'metrics' / 'processes.jsonl').write_text(json.dumps(
      {'step': 3, 'seconds': 1.5, 'peak_memory_bytes': 7, 'device': '1 cpu'}
  ) + '\n')


def _write_gin(folder: Path) -> None:
  import gin

  from moe_peft import gin_files
  from tests.training import tiny

  folder.mkdir(parents=True)
  gin_files.load_gin(
      ['gin/models/tiny_t5.gin', 'gin/methods/molora.gin',
       'gin/runs/finetune.gin'],
      [f'{name}={value!r}' for name, value in tiny.SIZES.items()]
      + ['MODEL_DIR=run'],
  )
  (folder / 'config.gin').write_text(gin.config_str())


def _write_study(folder: Path) -> None:
  folder.mkdir(parents=True)
  row = {
      'name': 'one', 'seed': 0, 'trainable': 4, 'total': 9, 'steps': 5,
      'device': '1 cpu', 'seconds': 2.0, 'seconds_per_step': 0.1,
      'peak_memory_bytes': 3, 'split': 'validation', 'held_out': ['u'],
      'tuned': {'ALPHA': '1'}, 'constant': {'t': 1.0}, 'base': {'t': 1, 'u': 2},
      'adapted': {'t': 2.0, 'u': None}, 'lower_is_better': ['u'],
  }  # fmt: skip
  write = lambda name, x: (folder / name).write_text(json.dumps(x))
  write('results.json', [row, row | {'seed': 1}, row | {'name': 'two'}])
  write('tuning.json', {'one': [{'validation': 1.0, 'ALPHA': '1'},
                                {'validation': 2.0, 'ALPHA': '2'}]})
  write('macros.json', {'RANK': '4', 'ALPHA': '1'})


def _read_tensors(folder: Path, out: Path) -> None:
  del out
  from moe_peft.hf import folders
  from moe_peft.training import bases

  for file in sorted(folder.glob('*.safetensors')):
    dict(bases.read_arrays(file))
  tensors = folders.Tensors(folder)
  for name in tensors.shapes:
    tensors[name]


def _import(folder: Path, out: Path) -> None:
  from moe_peft.hf import import_base

  source = folder / 'model.gguf'
  import_base.import_base(
      source if source.exists() else folder, out / 'base',
      file_format='safetensors',
  )


def _read_adapter(folder: Path, out: Path) -> None:
  del out
  from moe_peft.hf import import_experts
  from tests.hf import adapted

  import_experts.read([folder], adapted.CONFIG).to_gin()


def _read_run(folder: Path, out: Path) -> None:
  del out
  from moe_peft.runs import config_file
  from moe_peft.runs import metrics_files
  from moe_peft.runs import run

  found = run.read_all([folder])[0]
  bound = config_file.bindings(found.config, folder / 'config.gin')
  config_file.macros(bound)
  metrics_files.processes(folder)
  _ = found.scores
  if found.ablation:
    found.ablation.scores()
  for step in found.snapshots.steps if found.snapshots else ():
    found.snapshots.weights(step)


def _read_page(folder: Path, out: Path) -> None:
  from moe_peft.report import page

  page.write_report([folder], out / 'report.html')


def _read_gin(folder: Path, out: Path) -> None:
  del out
  from moe_peft import gin_files
  from moe_peft.runs import config_file

  file = folder / 'config.gin'
  gin_files.load_gin([str(file)])
  config_file.bindings(file.read_text(encoding='utf-8'), file)


def _read_study(folder: Path, out: Path) -> None:
  del out
  from moe_peft.study import records
  from moe_peft.study import run_rows
  from moe_peft.study import tables
  from moe_peft.study import tuning

  kept = records.Records(folder)
  records.check_macros(folder / 'macros.json', {'RANK': '4'})
  kept.row('one', 0, {'ALPHA': '1'})
  grid = [{'ALPHA': '1'}, {'ALPHA': '2'}]
  tuner = tuning.Tuner('one', grid, tuning.Plan(), kept)
  if not tuner.missing():
    tuner.best()
  for row in kept.rows:
    run_rows.score(row)
  tables.table(kept.rows, 'one')
  tables.controls(kept.rows)


def _read_cache(folder: Path, out: Path) -> None:
  del out
  from moe_peft.data import cache

  cache.reuse(folder, {'rows': 1, 'prompts': ['a', 'b'], 'version': '1'})
  cache.identity(folder)


_RUN_FILES = {
    **dict.fromkeys(
        ('run.json', 'results.json', 'routing.json', 'similarity.json',
         'ablation.json', 'routing_controls.json', 'routing/rows.json'), _JSON,
    ),
    **dict.fromkeys(
        ('metrics/train.jsonl', 'metrics/eval.jsonl', 'metrics/routers.jsonl',
         'metrics/processes.jsonl'), _LINES,
    ),
    'config.gin': _TEXT,
}  # fmt: skip

READERS = {
    'safetensors': Reader(
        _write_shards,
        {f'model-{x}.safetensors': _TENSORS for x in 'ab'}, _read_tensors,
    ),
    'index': Reader(
        _write_shards, {'model.safetensors.index.json': _JSON}, _read_tensors
    ),
    'config_t5': Reader(_write_t5, {'config.json': _JSON}, _import),
    'config_llama': Reader(_write_llama, {'config.json': _JSON}, _import),
    **{
        f'config_{name}': Reader(
            functools.partial(_write_family, name), {'config.json': _JSON},
            _import,
        )
        for name in ('llama3', 'qwen2_windows', 'gemma3', 'olmo3', 'granite')
    },
    'adapter_config': Reader(
        _write_adapter,
        {'adapter_config.json': _JSON, 'adapter_model.safetensors': _TENSORS},
        _read_adapter,
    ),
    'tokenizer': Reader(
        data_files.write_tokenizer, {'tokenizer.json': _JSON},
        data_files.read_tokenizer,
    ),
    'gguf': Reader(
        _write_gguf,
        {'model.gguf': mutations.seldom_raw(formats.as_gguf, 0.4)}, _import,
    ),
    'jsonl': Reader(
        data_files.write_rows,
        {'rows.jsonl': _LINES,
         'rows.jsonl.gz': mutations.seldom_raw(mutations.gzipped(_LINES), 0.5)},
        data_files.read_rows,
    ),
    'tfrecord': Reader(
        data_files.write_records,
        {'rows.tfrecord': _RECORDS,
         'rows.tfrecord.gz': mutations.seldom_raw(
             mutations.gzipped(_RECORDS), 0.5)},
        data_files.read_rows,
    ),
    'tables': Reader(
        data_files.write_tables,
        {'rows.csv': _TEXT, 'rows.tsv': _TEXT, 'rows.json': _JSON,
         'rows.csv.gz': mutations.seldom_raw(mutations.gzipped(_TEXT), 0.3)},
        data_files.read_tables,
    ),
    'arrow': Reader(
        data_files.write_arrow,
        {'rows.parquet': mutations.raw, 'saved/data.arrow': mutations.raw,
         'saved/state.json': _JSON},
        data_files.read_tables,
    ),
    'conversations': Reader(
        data_files.write_conversations,
        {f'{x}.jsonl': _LINES for x in data_files.CONVERSATIONS},
        data_files.read_conversations,
    ),
    'chat_template': Reader(
        data_files.write_template,
        {'chat_template.jinja': mutations.seldom_raw(hostile_templates.mutate),
         'tokenizer_config.json': _JSON},
        data_files.read_conversations,
    ),
    'token_ids': Reader(
        data_files.write_token_ids,
        {x: _JSON for x in ('generation_config.json', 'tokenizer_config.json',
                            'config.json')},
        _import,
    ),
    'npz': Reader(
        _write_run, {f'routing/step_{x}.npz': _ARRAYS for x in (0, 20)},
        _read_run,
    ),
    'run': Reader(_write_run, _RUN_FILES, _read_run),
    'page': Reader(_write_run, _RUN_FILES, _read_page, one_in=50),
    'gin': Reader(_write_gin, {'config.gin': _TEXT}, _read_gin),
    'study': Reader(
        _write_study,
        {x: _JSON for x in ('results.json', 'tuning.json', 'macros.json')},
        _read_study,
    ),
    'prepared': Reader(
        formats.write_cache, {'prepared.json': _JSON}, _read_cache
    ),
}  # fmt: skip
