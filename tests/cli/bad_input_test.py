# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with an input, each command says so in one sentence."""

import gin
import pytest

from tests.cli import refusal
from tests.training import tiny

refusals = refusal.refusals

FLAGS = [
    # Command and arguments; what the message must name.
    ('trian', 'trian', 'train'),
    ('-x', '-x'),
    ('train', '--gin_file', 'configs/quickstart.gin'),
    ('train --gin_file', '--gin_file'),
    ('train --gin_file=nowhere.gin', 'nowhere.gin'),
    ('train --gin_file=configs/quickstrat.gin', 'configs/quickstart.gin'),
    ('train --gin_file=folder', 'folder'),
    (f'train --gin_file=configs/quickstart.gin --gin.RANK={"(" * 5000}1',
     'RANK'),
    ('train --gin_fil=configs/quickstart.gin x', 'x'),
    ('train run', 'run'),
    ('train --gin_file=configs/quickstart.gin --gin.RANK', '--gin.RANK=VALUE'),
    ('train --gin_file=configs/quickstart.gin --gin.RNAK=3', 'RANK'),
    ('train --gin_file=configs/quickstart.gin --gin.rank=3', 'RANK'),
    ('train --gin_file=configs/quickstart.gin --gin.=3', '--gin.'),
    ('train --gin_file=configs/quickstart.gin --gin.RANK=%NOPE', 'NOPE'),
    ('train --gin_file=configs/quickstart.gin --gin.RANK=@nope()', 'nope'),
    ('train --gin_file=configs/quickstart.gin --gin.RANK=[1,@', '--gin.RANK'),
    ('train --gin_file=configs/quickstart.gin --gin.molora.MoLoRA.rnk=3',
     'rnk', 'rank'),
    ('train --gin_file=configs/quickstart.gin --gin.molora.MoLoRa.rank=3',
     'molora.MoLoRA'),
    ('train --gin_file=configs/quickstart.gin --gin.a/b.c=3', 'b'),
    ('evaluate', 'RUN'),
    ('evaluate nowhere', 'nowhere', 'MODEL_DIR'),
    ('evaluate folder', 'folder', 'config.gin'),
    ('evaluate emptied', 'emptied/config.gin', 'empty'),
    ('evaluate run --splitt=test', '--splitt'),
    ('evaluate run --split=tset', '--split', 'tset', 'test'),
    ('evaluate run --split=', '--split', 'test'),
    ('evaluate run --gin.RANK=0', 'RANK = 0'),
    ('evaluate run --gin.RNAK=3', 'RNAK', 'RANK'),
    ('evaluate run --gin_file=nowhere.gin', 'nowhere.gin'),
    ('infer', 'RUN'),
    ('infer nowhere lines.txt', 'nowhere'),
    ('infer run nowhere.txt', 'nowhere.txt'),
    ('infer run folder', 'folder'),
    ('infer run latin1.txt', 'latin1.txt, line 2', 'UTF-8'),
    ('infer run long.txt', 'line 2', 'TASK_FEATURE_LENGTHS'),
    ('infer run lines.txt --decode=magic', '--decode', 'magic'),
    ('infer run lines.txt --beams=-1', '--beams', '-1'),
    ('infer run lines.txt --beams=0', '--beams'),
    ('infer run lines.txt --beams=two', '--beams'),
    ('infer run lines.txt --temperature=0', '--temperature'),
    ('infer run lines.txt --temperature=nan', '--temperature'),
    ('infer run lines.txt --seed=-1', '--seed'),
    ('infer run lines.txt --seed=9999999999', '--seed'),
    ('infer run lines.txt more.txt', 'more.txt'),
    ('infer run lines.txt --gin.EVAL_BATCH_SIZE=0', 'EVAL_BATCH_SIZE = 0'),
    ('report', 'RUN'),
    ('report nowhere', 'nowhere'),
    ('report folder', 'folder'),
    ('report latin1.txt', 'latin1.txt'),
    ('report ' + 'run ' * 21, '20'),
    ('report run --out', '--out'),
    ('report run --out=folder', '--out', 'folder'),
    ('report run --out=latin1.txt/page.html', '--out', 'latin1.txt'),
    ('report run --out=run/config.gin', '--out', '.html'),
    ('bank show bank --out=bank/bank.json', '--out', '.svg'),
    ('evidence study --out=object.json', '--out', '.md'),
    ('t5x_config --gin_file=study/one.gin --out=rows.jsonl', '--out', '.gin'),
    ('init --base=bases/tiny_t5 --data=rows.jsonl --out=rows.jsonl', '.gin'),
    ('aot --topology=v5e-8 --gin_file=study/one.gin --json=study/one.gin',
     '--json', '.json'),
    ('report ~no_such_user/run', '~no_such_user'),
    ('evidence folder --out=folder', '--out', 'folder'),
    ('t5x_config --gin_file=study/one.gin --out=folder', '--out', 'folder'),
    ('init --base=bases/tiny_t5 --data=rows.jsonl --out=folder', '--out'),
    ('init --base=nowhere --data=rows.jsonl --out=new.gin', 'nowhere'),
    ('study', 'FOLDER'),
    ('study nowhere', 'nowhere'),
    ('study folder', 'folder'),
    ('study latin1.txt', 'latin1.txt'),
    ('study study --seeds=', '--seeds'),
    ('study study --seeds=x', '--seeds', 'x'),
    ('study study --seeds=0,0', '--seeds', 'twice'),
    ('study study --seeds=-1', '--seeds', '-1'),
    ('study study --tune=ALPHA', '--tune', 'ALPHA'),
    ('study study --tune=NOPE=1,2', '--tune', 'NOPE'),
    ('study study --tune=SEED=1,2', '--tune', 'SEED'),
    ('study study --tune=MODEL_DIR=a,b', '--tune', 'MODEL_DIR'),
    ('study study --tune=ALPHA=1 --tune=ALPHA=2', '--tune', 'twice'),
    ('study study --tune=ALPHA=1,x', 'ALPHA', 'x'),
    ('study study --only=nope', '--only', 'nope', 'one'),
    ('study study --reference=nope', '--reference', 'nope', 'one'),
    ('study study --jobs=0', '--jobs'),
    ('study study --out=new --merge=folder', 'folder', 'no rows'),
    ('study study --out=new --merge=nowhere', 'nowhere', 'no rows'),
    ('study study --out=latin1.txt/x', '--out', 'latin1.txt'),
    ('study study --out=new --results=latin1.txt/x', '--results', 'latin1.txt'),
    ('drill --work=latin1.txt/x', '--work', 'latin1.txt'),
    ('study study --gin.RANK=0', 'RANK = 0'),
    ('study study --gin.RNAK=1', 'RNAK', 'RANK'),
    ('study study --split=tset', '--split', 'tset', 'test'),
    ('study bad_study', 'RANK = 0', 'two.gin, line 2'),
    ('study seeds_study', 'SEEDS'),
    ('study lacking_study', 'lacking_study/one.gin', '--gin.'),
    ('study method_study', 'method_study/one.gin', 'MODEL_DIR'),
    ('study tune_study', 'TUNE'),
    ('plan', '--gin_file'),
    ('plan --gin_file=nowhere.gin', 'nowhere.gin'),
    ('plan --gin_file=circle.gin', 'circle.gin', 'includes itself'),
    ('plan --gin_file=study/one.gin --devices=0', '--devices'),
    ('plan --gin_file=study/one.gin --devices=3', 'BATCH_SIZE', '3'),
    ('plan --gin_file=study/one.gin --gin.RANK=x', 'RANK'),
    ('plan --gin_file=gin/models/tiny_t5.gin', 'ADAPTER_RULES'),
    ('plan --gin_file=gin/methods/molora.gin', '--gin_file'),
    ('aot', '--topology'),
    ('aot --topology=v5e-8', '--gin_file'),
    ('aot --topology=v99-8 --gin_file=study/one.gin', 'v99-8'),
    ('aot --topology=v5e-7 --gin_file=study/one.gin', 'v5e-7'),
    ('aot --topology= --gin_file=study/one.gin', 'topology'),
    ('aot --topology=v5e-8 --execution=magic', '--execution', 'magic'),
    ('aot --show folder', '--json', 'folder'),
    ('aot --show object.json', 'object.json', '--json'),
    ('aot --topology=v5e-8 --gin_file=study/one.gin --json=folder', '--json'),
    ('aot --topology=v5e-8 --gin_file=study/one.gin --hlo=latin1.txt/x',
     '--hlo', 'latin1.txt'),
    ('ablate', 'RUN'),
    ('ablate nowhere', 'nowhere'),
    ('ablate run --rows=0', '--rows'),
    ('ablate run --rows=x', '--rows'),
    ('ablate run --split=tset', '--split', 'tset', 'test'),
    ('ablate run --gin.NUM_EXPERTS=0', 'NUM_EXPERTS = 0'),
    ('prune', 'RUN'),
    ('prune run --keep=2', '--out'),
    ('prune run --out=new', '--keep'),
    ('prune run --out=new --keep=0', '--keep'),
    ('prune run --out=new --keep=x', '--keep'),
    ('prune nowhere --out=new --keep=1', 'nowhere'),
    ('prune run --out=run --keep=1', '--out', 'run'),
    ('prune run --out=latin1.txt --keep=1', '--out', 'latin1.txt'),
    ('prune run --out=new --keep=1 --split=tset', '--split', 'tset'),
    ('save_base', 'RUN'),
    ('save_base run', 'OUT'),
    ('save_base nowhere new', 'nowhere'),
    ('save_base folder new', 'folder'),
    ('data', 'prepare'),
    ('data prepar', 'prepar', 'prepare'),
    ('data prepare', '--out'),
    ('data prepare --out=new', '--packages', '--promptsource'),
    ('data prepare --packages=folder', '--out'),
    ('data prepare --packages=nowhere --out=new', 'nowhere'),
    ('data prepare --packages=folder --out=new', 'folder'),
    ('data prepare --packages=latin1.txt --out=new', 'latin1.txt'),
    ('data prepare --packages=folder --out=new --suffix=x', '--packages'),
    ('data prepare --packages=x --promptsource=x --out=new', '--promptsource'),
    ('data prepare --promptsource=nowhere --out=new', '--data_dir'),
    ('data prepare --promptsource=nowhere --data_dir=folder --out=new',
     'nowhere'),
    ('data prepare --promptsource=latin1.txt --data_dir=folder --out=new',
     'latin1.txt'),
    ('data prepare --packages=folder --out=new --max_rows=0', '--max_rows'),
    ('data prepare --packages=folder --out=new --num_shards=x', '--num_shards'),
    ('data prepare --packages=folder --out=new --split=tset', '--split'),
    ('data prompts', '--promptsource'),
    ('data prompts --promptsource=nowhere', 'nowhere'),
    ('hf', 'import'),
    ('hf imprt x', 'imprt'),
    ('hf import folder', '--out'),
    ('hf import nowhere --out=new', 'nowhere'),
    ('hf import folder --out=new', 'folder'),
    ('hf import latin1.txt --out=new', 'latin1.txt'),
    ('hf import folder --out=new --layout=x', '--layout'),
    ('hf import folder --out=new --format=x', '--format'),
    ('hf export', 'RUN'),
    ('hf export run', '--out'),
    ('hf export nowhere --out=new', 'nowhere'),
    ('hf export run --out=new --format=x', '--format'),
    ('hf export run --out=new --rank=2', '--collapse'),
    ('hf export run --out=new --per_task', '--collapse'),
    ('hf export run --out=new --collapse=x.jsonl --rank=0', '--rank'),
    ('hf export run --out=new --gin.RANK=0', 'RANK = 0'),
    ('hf export run --out=run --force', '--out', 'the run itself'),
    ('hf export run --out=run/../run --force', '--out', 'the run itself'),
    ('hf export run --out=new --example_id=x', '--example_id', 'without ids'),
    ('hf export run --out=study', '--out', '--force'),
    ('hf export run --out=latin1.txt/new', '--out', 'latin1.txt'),
    ('hf export run --out=~no_such_user/new', '~no_such_user'),
    ('hf export run --out=new --base=a:b', '--base', 'a:b', 'Hub'),
    ('hf import folder --out=new --hub_id=../x', '--hub_id', '../x'),
    ('hf export run --out=new --collapse=more.txt', 'more.txt', '.jsonl'),
    ('hf export run --out=new --collapse=folder', 'folder/*.parquet'),
    ('hf export run --out=new --collapse=rows.jsonl', '--collapse', 'one row'),
    ('bank', 'build'),
    ('bank build --from=folder --out=new', '--base'),
    ('bank build --from=rows.jsonl --base=bases/tiny_t5 --out=new', '--from'),
    ('bank show folder', 'folder', 'bank.json'),
    ('bank show folder --out=study', '--out', 'study'),
    ('bank remove folder one', 'folder', 'bank.json'),
    ('hf verify', 'DIR'),
    ('hf verify nowhere', 'nowhere'),
    ('hf verify folder', 'folder'),
]


@pytest.fixture(scope='module')
def config_of_run():
  """What a tiny run says of itself."""
  tiny.load('run', WARMUP_STEPS=0)
  yield gin.config_str()
  gin.clear_config()


@pytest.fixture
def inputs(refusals, config_of_run):
  """A run that was never trained, a study, and files that are wrong."""
  (refusals.folder / 'folder').mkdir()
  (refusals.folder / 'run' / 'checkpoints').mkdir(parents=True)
  refusals.write('run/config.gin', config_of_run)
  refusals.write('emptied/config.gin')
  refusals.write('lines.txt', 'past tense: walk\n')
  refusals.write('more.txt')
  refusals.write('object.json', '{}')
  refusals.write('rows.jsonl', '{"inputs": "a", "targets": "b"}\n')
  refusals.write('latin1.txt', b'one\n\xe9t\xe9\n')
  refusals.write('long.txt', 'one\n' + 'x' * 99 + '\n')
  leaf = "include 'configs/quickstart.gin'\n"
  refusals.write('study/one.gin', leaf)
  refusals.write('bad_study/one.gin', leaf)
  refusals.write('circle.gin', "include 'circle.gin'\n")
  refusals.write('bad_study/two.gin', leaf + 'RANK = 0\n')
  refusals.write('seeds_study/one.gin', leaf + "SEEDS = (0, 'x')\n")
  for name, file in (('lacking', 'runs/finetune'), ('method', 'methods/lora')):
    refusals.write(f'{name}_study/one.gin', f"include 'gin/{file}.gin'\n")
  refusals.write('tune_study/one.gin', leaf + "TUNE = {'NOPE': (1, 2)}\n")
  return refusals


@pytest.mark.parametrize('row', FLAGS, ids=[row[0][:60] for row in FLAGS])
def test_flags_and_paths(row, inputs):
  command, *names = row
  inputs.expect(command.split(), *names)


_IMPORT = 'from moe_peft.methods import molora\n'
GIN_FILES = [
    # The text of a gin file; what the message must name.
    ('RANK = = 3', 'leaf.gin', 'line 3'),
    ('RANK = 3 4', 'leaf.gin', 'line 3'),
    ('RANK = (1, 2', 'leaf.gin'),
    ("RANK = 'x", 'leaf.gin', 'line 3'),
    ('RANK =', 'leaf.gin'),
    ('RANK', 'leaf.gin', 'line 3'),
    ('RANK: 3', 'leaf.gin', 'line 3'),
    ('= 3', 'leaf.gin', 'line 3'),
    ('RANK = four', 'leaf.gin', 'line 3'),
    ('RANK = 1 if True else 2', 'leaf.gin', 'line 3'),
    ('RANK = %NOPE', 'NOPE', '--gin.NOPE='),
    ('RANK = @nope()', 'nope'),
    ('import nosuchmodule', 'nosuchmodule', 'line 3'),
    ('from moe_peft import nothing', 'nothing', 'line 3'),
    ('from moe_peft.core import nothing', 'nothing', 'line 3'),
    ('import moe_peft.inject', 'moe_peft.inject'),
    ("include 'nowhere.gin'", 'nowhere.gin', 'line 3'),
    ("include 'configs/quickstrat.gin'", 'quickstart.gin'),
    (f'RANK = {"(" * 5000}1{")" * 5000}', 'leaf.gin', 'nested'),
    ('include leaf.gin', 'leaf.gin', 'line 3'),
    ('molora.MoLoRA.rank = 3', 'Import molora', 'line 3'),
    (f'{_IMPORT}molora.MoLoRA.rnk = 3', 'rnk', 'Did you mean rank', 'line 4'),
    (f'{_IMPORT}molora.MoLoRa.rank = 3', 'Did you mean MoLoRA', 'line 4'),
    (f'{_IMPORT}molora.MoLoRA:\n  rnk = 3', 'rnk', 'rank', 'line 5'),
    ('optax.sgd.learning_rate = 3', 'optax.sgd'),
    ('RANK = 3\nRANK = 0', 'RANK = 0', 'leaf.gin, line 4'),
    ('MODEL_DIR = %gin.REQUIRED', 'MODEL_DIR', '--gin.MODEL_DIR='),
    ('MODEL = None', 'MODEL = None'),
    ('ADAPTER_RULES = None', 'ADAPTER_RULES'),
    ("ADAPTER_RULES = ('x',)", 'ADAPTER_RULES'),
    ('ADAPTER = None', 'ADAPTER'),
    ("ADAPTER = 'molora'", 'ADAPTER'),
    ('\x00', 'leaf.gin'),
    ('RANK = "\udc80"', 'leaf.gin', 'utf-8'),
    ('RANK = 3\r\nALPHA = "x"', 'ALPHA', 'line 4'),
]  # fmt: skip


@pytest.mark.parametrize('row', GIN_FILES, ids=[repr(x[0]) for x in GIN_FILES])
def test_gin_files(row, inputs):
  text, *names = row
  head = "from __gin__ import dynamic_registration\ninclude 'run/config.gin'\n"
  text = (head + text).encode('utf-8', 'surrogateescape')
  inputs.write('leaf.gin', text)
  inputs.expect(['train', '--gin_file=leaf.gin'], *names)


TOGETHER = [
    # Values that are right alone; what the message must name.
    ({'WARMUP_STEPS': '4'}, 'WARMUP_STEPS', 'TRAIN_STEPS = 4'),
    ({'NUM_MICROBATCHES': '3'}, 'NUM_MICROBATCHES', 'BATCH_SIZE = 8'),
    ({'BATCH_SIZE': '12'}, 'BATCH_SIZE', '12', '8'),
    ({'EVAL_BATCH_SIZE': '12'}, 'EVAL_BATCH_SIZE', '12', '8'),
    ({'NUM_EXPERT_PARTITIONS': '3'}, 'NUM_EXPERT_PARTITIONS', '3', '8'),
    ({'NUM_MODEL_PARTITIONS': '16'}, 'NUM_MODEL_PARTITIONS', '16', '8'),
    ({'NUM_EXPERT_PARTITIONS': '8'}, 'NUM_EXPERTS', '4', '8'),
    ({'EVAL_SPLIT': 'tset'}, 'EVAL_SPLIT', 'tset', 'test, train, validation'),
    ({'MIXTURE_OR_TASK_NAME': 'past_tens'}, 'past_tens', 'past_tense'),
    ({'EVAL_MIXTURE_OR_TASK_NAME': 'stres'}, 'stres', 'stress'),
    ({'TASK_FEATURE_LENGTHS': "{'inputs': 32}"}, 'TASK_FEATURE_LENGTHS',
     'targets'),
    ({'TASK_FEATURE_LENGTHS': "{'inputs': 9, 'targets': 9}"},
     'TASK_FEATURE_LENGTHS', '26', '15'),
    ({'TASK_FEATURE_LENGTHS': "{'inputs': 32, 'targets': 16, 'target': 3}"},
     'TASK_FEATURE_LENGTHS', "'target'"),
    ({'INITIAL_CHECKPOINT_PATH': 'nowhere'}, 'nowhere'),
    ({'INITIAL_CHECKPOINT_PATH': 'folder'}, 'folder'),
    ({'INITIAL_CHECKPOINT_PATH': 'latin1.txt'}, 'latin1.txt'),
    ({'MODEL_DIR': 'latin1.txt'}, 'MODEL_DIR', 'latin1.txt'),
    ({'MODEL_DIR': 'latin1.txt/run'}, 'MODEL_DIR', 'latin1.txt/run'),
    ({'BASE_RESULTS_DIR': 'latin1.txt'}, 'BASE_RESULTS_DIR', 'latin1.txt'),
    ({'SITES': 'nothing'}, 'SITES', 'nothing'),
    ({'TRAINABLE_REGEX': 'nothing'}, 'TRAINABLE_REGEX', 'nothing'),
    ({'LOSS_FACTORS': "{'auxilary_loss': 1.0}"}, 'auxilary_loss'),
    ({'PARAM_BUDGET': '10'}, 'PARAM_BUDGET', '10', 'RANK = 1'),
    ({'PARAM_BUDGET': '1e-9'}, 'PARAM_BUDGET', 'RANK = 1'),
    ({'PARAM_BUDGET': '9000', 'BUDGET_MACRO': 'RNAK'}, 'BUDGET_MACRO', 'RNAK'),
    ({'PARAM_BUDGET': '9000', 'BUDGET_MACRO': 'SITES'}, 'BUDGET_MACRO'),
    ({'PARAM_BUDGET': '9000', 'BUDGET_MACRO': 'SEED'}, 'BUDGET_MACRO'),
    ({'t5.T5Config.num_heads': '0'}, 't5.T5Config.num_heads'),
    ({'t5.T5Config.num_encoder_layers': '-1'}, 'num_encoder_layers'),
    ({'t5.T5Config.mlp_activations': "('nope',)"}, 'mlp_activations', 'nope'),
    ({'optax.adamw.b1': "'x'"}, '--gin_file'),
    ({'optax.adamw.weight_decay': "'x'"}, '--gin_file'),
    ({'router/optax.adamw.learning_rate': "'x'"}, '--gin_file'),
    ({'router/schedules.warmup_cosine.peak_value': '(1,)'}, 'peak_value'),
    ({'trainable.by_path.rules': '()'}, 'trainable.by_path.rules'),
    ({'trainable.by_path.rules': "(('(', @optax.adamw()),)"},
     'trainable.by_path.rules'),
    ({'molora.MoLoRA.execution': "'magic'"}, 'execution', 'magic'),
    ({'molora.MoLoRA.dtype': "'magic'"}, 'magic'),
    ({'method': 'sira', 'NUM_SELECTED_EXPERTS': '99'}, 'NUM_SELECTED_EXPERTS',
     '99', 'NUM_EXPERTS = 16'),
    ({'method': 'mola', 'EXPERTS_BY_DEPTH': '(2, 4, 6)'}, 'EXPERTS_BY_DEPTH'),
    ({'method': 'smoe_dropout', 'FIRST_K': '17'}, 'FIRST_K', '17', '16'),
]  # fmt: skip


@pytest.mark.parametrize(
    'row', TOGETHER, ids=[' '.join(f'{k}={v}' for k, v in x[0].items())
                          for x in TOGETHER]
)
def test_values_that_do_not_go_together(row, inputs):
  bindings, *names = row
  inputs.expect(['train', *refusal.arguments(**bindings)], *names)
