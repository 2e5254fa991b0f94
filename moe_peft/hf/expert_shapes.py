# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the tensors of exported experts, as torch has them.

Exported folders hold this file inside of theirs, so it imports nothing.
"""


def expert_shapes(spec):
  """Shapes of the tensors of `Experts` by name."""
  experts, rank = spec['num_experts'], spec.get('rank')
  inputs, outputs = spec['in_features'], spec['out_features']
  pair = lambda num_a, i, o, prefix='': {
      f'{prefix}lora_a': (num_a, rank, i), f'{prefix}lora_b': (experts, o, rank)
  }
  read = inputs
  if spec['kind'] == 'low_rank':
    shapes = pair(1 if spec['shared_a'] else experts, inputs, outputs)
    if spec.get('scaled'):
      shapes |= {'column_scale': (outputs,), 'column_offset': (outputs,)}
    if spec.get('always_on'):
      shapes |= {
          'shared_lora_a': (1, spec['always_on'], inputs),
          'shared_lora_b': (1, outputs, spec['always_on']),
      }
  elif spec['kind'] == 'vector':
    shapes = {'scaling': (experts, outputs)}
    read = outputs // spec['num_heads']
  elif spec['kind'] == 'bottleneck':
    shapes = {
        'down': (experts, rank, outputs), 'down_bias': (experts, rank),
        'up': (experts, outputs, rank), 'up_bias': (experts, outputs),
    }
    read = outputs
  else:
    shapes = pair(experts, inputs, outputs, 'wo_')
    for branch in spec['branches']:
      shapes |= pair(experts, outputs, inputs, f'{branch["name"]}_')
    read = outputs
  return shapes | router_shapes(spec['router'], experts, read)


def router_shapes(router, num_experts, features):
  """Shapes of a router's tensors by name; `features` are those of its layer."""
  given = router is None or router['selection'] == 'uniform'
  # It reads the experts' own arrays, or has what all layers share.
  if given or router.get('experts') or router.get('first_pass'):
    return {}
  features = router.get('features') or features
  shapes = {'router': (num_experts * router.get('units', 1), features)}
  if router['selection'] == 'threshold':
    shapes |= {'threshold_router': (1, features), 'threshold_bias': (1,)}
  if router['selection'] == 'sparsegen':
    units = router['lambda_units']
    shapes |= {
        'lambda_kernel': (features, units), 'lambda_bias': (units,),
        'lambda_out': (units, 1), 'lambda_offset': (1,),
    }
  if router['balancing_bias'] or router.get('normed'):
    shapes['router_bias'] = (num_experts,)
  if router.get('normed'):
    shapes |= {'router_columns': (features,), 'router_scale': (features,)}
  return shapes
