# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small run directory of version 1, as older runs have it."""

import json
import math

import numpy as np
import pytest

TASKS = ('past_tense', 'stress', 'qa')
NUM_EXPERTS = 4


def write_run(path, routed=True, steps=40, seed=0, method='molora'):
  """Writes a whole run directory; returns its path."""
  random = np.random.default_rng(seed)
  (path / 'metrics').mkdir(parents=True)

  def write(name, value):
    (path / name).write_text(json.dumps(value))

  write('run.json', {
      'method': [f'gin/methods/{method}.gin'],
      'base': 'pretrained/tiny_t5',
      'num_params_total': 2_000_000,
      'num_params_trainable': 50_000,
      'steps': steps,
      'batch_size': 16,
      'seed': seed,
      'device': 'cpu',
      'seconds': 75.2,
      'versions': {'jax': '0.10.2'},
  })
  (path / 'config.gin').write_text(f'BATCH_SIZE = 16\nSEED = {seed}\n')
  with open(path / 'metrics' / 'train.jsonl', 'w') as f:
    for step in range(1, steps + 1):
      record = {
          'step': step,
          'loss': 2 * math.exp(-step / 20),
          'accuracy': 1 - math.exp(-step / 20),
          'learning_rate': 1e-3,
          'tokens_per_second': 5000.0,
      }
      if routed:
        record |= {'router_entropy': 0.9, 'auxiliary_loss': 1.01}
      f.write(json.dumps(record) + '\n')
  with open(path / 'metrics' / 'eval.jsonl', 'w') as f:
    for step in (0, steps // 2, steps):
      for task in TASKS:
        f.write(json.dumps({
            'step': step, 'task': task, 'exact_match': float(step), 'f1': 50.0
        }) + '\n')
  write('results.json', {
      'split': 'validation',
      'num_examples': {t: 128 for t in TASKS},
      'tasks': {
          t: {
              'f1': {'base': 20.0, 'adapted': 55.5},
              'exact_match': {'base': 12.25, 'adapted': 61.75},
          }
          for t in TASKS
      },
      'primary_metric': {t: 'exact_match' for t in TASKS},
  })
  if routed:
    write('routing.json', routing(random))
    write_experts(path, random)
  return path


def write_experts(path, random):
  """What a run leaves about routers over time and about single experts."""
  sites = [site['path'] for site in routing(random)['sites']]
  with open(path / 'metrics' / 'routers.jsonl', 'w') as f:
    for step in (20, 40):
      means = {'load': [0.3, 0.3, 0.3, 0.1], 'selected': 4.0,
               'left_behind': 0.125}
      f.write(json.dumps(
          {'step': step, 'sites': {site: means for site in sites}}
      ) + '\n')
  folder = path / 'routing'
  folder.mkdir()
  pieces = {'encoder': ['a', 'b', '⟨end⟩'], 'decoder': ['⟨start⟩', '<i>']}
  (folder / 'rows.json').write_text(
      json.dumps({'rows': [{'task': task, **pieces} for task in TASKS]})
  )
  # Padding at the end; from the second snapshot on, all tokens use expert 2.
  weights = np.full((len(TASKS), 5, NUM_EXPERTS), 0.25, np.float16)
  np.savez(folder / 'step_0.npz', **dict.fromkeys(sites, weights))
  moved = np.zeros_like(weights)
  moved[..., 2] = 1
  for step in (20, 40):
    np.savez(folder / f'step_{step}.npz', **dict.fromkeys(sites, moved))
  described = [{'path': site, 'num_experts': NUM_EXPERTS} for site in sites]
  cosine = np.full((NUM_EXPERTS, NUM_EXPERTS), 0.5)
  np.fill_diagonal(cosine, 1)
  (path / 'similarity.json').write_text(json.dumps(
      {'sites': described, 'cosine': [cosine.tolist()] * len(sites)}
  ))
  without = np.full((NUM_EXPERTS, len(TASKS)), 2.0)
  without[1] = 2.25
  (path / 'ablation.json').write_text(json.dumps({
      'tasks': list(TASKS), 'sites': described, 'loss': [2.0] * len(TASKS),
      'without': [without.tolist()] * len(sites),
  }))
  scores = lambda value: dict.fromkeys(TASKS, value)
  (path / 'routing_controls.json').write_text(json.dumps({
      'metrics': scores('exact_match'), 'step': 40, 'split': 'test',
      'scores': {'trained': scores(61.75), 'task_mean': scores(51.25)},
      'rows': scores(8),
  }))


def routing(random):
  """Two layers of two site names in each stack; one expert is dead."""
  sites = [
      {
          'path': f'{stack}/layers_{layer}/{name}',
          'stack': stack,
          'layer': layer,
          'name': name,
          'num_experts': NUM_EXPERTS,
      }
      for stack in ('encoder', 'decoder')
      for layer in (0, 1)
      for name in ('attention/query', 'mlp/wo')
  ]
  load = random.dirichlet(np.ones(NUM_EXPERTS), (len(TASKS), len(sites)))
  load = 0.2 + 0.2 * load
  load[:, 3] = [0.5, 0.25, 0.25, 0.0]
  return {
      'tasks': list(TASKS),
      'sites': sites,
      'load': load.tolist(),
      'entropy': np.full((len(TASKS), len(sites)), 0.75).tolist(),
      'left_behind': np.zeros((len(TASKS), len(sites))).tolist(),
      'chance': [0.001] * len(sites),
  }


@pytest.fixture
def run_dir(tmp_path):
  return write_run(tmp_path / 'run')


@pytest.fixture
def make_run(tmp_path):
  return lambda name, **kwargs: write_run(tmp_path / name, **kwargs)
