# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what is printed of compiled steps, without a compiler."""

from moe_peft.compile import tables

GIB = 2**30
HEAD = {
    'topology': 'v5e-8', 'chips': 8, 'mesh': {'data': 4, 'model': 2},
    'execution': 'einsum', 'batch_size': 8, 'num_microbatches': 1,
    'packing': False, 'attention': 'full',
    'base_dtype': 'bfloat16', 'activation_dtype': 'float32',
    'scan_layers': True, 'remat_policy': 'full',
}
REPORT = HEAD | {
    'compile': {'seconds': 3.0, 'cpu_seconds': 4.0},
    'memory': {
        'by_kind': {
            'frozen base': 4 * GIB, 'adapters': GIB, 'optimizer': 2 * GIB,
            'batch': GIB / 4, 'layout padding': GIB / 4, 'temporaries': 3 * GIB,
        },
        'total': 10.5 * GIB, 'limit': 15.75 * GIB, 'state': 3 * GIB,
        'aliased': 3 * GIB, 'replicated_state': 6 * GIB,
    },
    'flops': {'per_device': 2e12, 'adapters': 5e11},
    'collectives': {
        'bytes': 2**22, 'adapters': 2**20,
        'by_kind': {
            'all-reduce': {'count': 7, 'bytes': 2**22, 'adapters': 2**20}
        },
        'largest': [{
            'kind': 'all-reduce', 'array': 'f32[2,32]', 'group_size': 4,
            'of': 'network', 'count': 3, 'bytes': 2**21,
        }],
    },
    'kernel_sized_collectives': {'encoder/wi/kernel': 3},
    'not_counted': {
        'loops of unknown length': ['while.1'], 'custom calls': {'sort': 2}
    },
    'roofline': {
        'seconds': {'compute': 0.25, 'memory': 0.5}, 'bound': 'memory'
    },
}


def test_a_report_has_sizes_in_mib(capsys):
  tables.show_report(REPORT)
  text = capsys.readouterr().out
  for part in ('data 4 x model 2', '4,096.0', '10,752.0', '25.0 %',
               'f32[2,32] of network', 'encoder/wi/kernel 3', 'while.1'):
    assert part in text, part


def test_the_summary_has_a_row_for_each_slice(capsys):
  tables.show_summary([REPORT, HEAD | {'error': 'RESOURCE_EXHAUSTED'}])
  lines = capsys.readouterr().out.splitlines()
  rows = [
      [cell.strip() for cell in line.split('|')[1:-1]]
      for line in lines if line.startswith('| v5e-8')
  ]
  assert rows[0] == [
      'v5e-8', '4 x 2', 'einsum', '4.00', '1.00', '2.00', '3.00', '0.50',
      '10.50', '15.75', '2.00', '25.0 %', '4', '25.0 %', '0.500 memory', '3',
  ]
  assert rows[1][:4] == ['v5e-8', '4 x 2', 'einsum', 'too large']
