# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in `config.json`, as transformers 4 and 5 spell them.

Version 4 has `rope_theta`, `rope_scaling` and `partial_rotary_factor`, version
5 all of it in `rope_parameters`, where families with two kinds of layers have
an object for each. A version reads the other's spelling without an error, and
then with theta 10000; so both are written.
"""

from collections.abc import Mapping
import math
from typing import Any

from moe_peft.hf import base_config
from moe_peft.models import rotary

FULL, SLIDING = 'full_attention', 'sliding_attention'
_LENGTH = 'original_max_position_embeddings'
_ATTENTION = ('factor', _LENGTH, 'attention_factor')
# Fields that each kind reads.
_FIELDS = {
    'default': (),
    'linear': ('factor',),
    'dynamic': ('factor',),
    'llama3': ('factor', _LENGTH, 'low_freq_factor', 'high_freq_factor'),
    'yarn': (
        *_ATTENTION, 'beta_fast', 'beta_slow', 'truncate', 'mscale',
        'mscale_all_dim',
    ),
    'longrope': (*_ATTENTION, 'short_factor', 'long_factor'),
}
_KNOWN = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}.union(
    *_FIELDS.values()
)
# Older names that Phi-3 has for 'longrope'.
_PHI_KINDS = {'su': 'longrope', 'yarn': 'longrope'}
_PER_LAYER = ('gemma3_text', 'olmo3')


def options(fields: base_config.Fields) -> dict[str, Any]:
  """Reads the fields of `DecoderConfig` that are about rotary positions.

  Args:
    fields: Fields of `config.json`, with the defaults of its family.

  Raises:
    errors.UserError: For kinds and fields that rotary.py does not compute.
  """
  full, local = parameters(fields)
  found = {
      'rope_theta': full['rope_theta'],
      'rope_fraction': full.get('partial_rotary_factor', 1.0),
      'rope_scaling': _scaling(fields, full),
  }
  if local is not None:
    if local['rope_type'] != 'default':
      raise base_config.unsupported(
          f'rope_parameters.{SLIDING}', local['rope_type'],
          'positions without scaling',
      )
    if local.get('partial_rotary_factor', 1.0) != found['rope_fraction']:
      raise base_config.unsupported(
          f'rope_parameters.{SLIDING}', local, 'one partial_rotary_factor'
      )
    if found['rope_scaling'] or local['rope_theta'] != full['rope_theta']:
      found['local_rope_theta'] = local['rope_theta']
  return found


def parameters(
    fields: base_config.Fields,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """Returns `rope_parameters` of full layers and of sliding ones.

  The latter is None in families with one kind.
  """
  old = _object('rope_scaling', fields.get('rope_scaling', {}))
  new = _object('rope_parameters', fields.get('rope_parameters', {}))
  theta = fields.number('rope_theta', 10000.0, minimum=2.0)
  if fields.config['model_type'] not in _PER_LAYER:
    nested = new.get(FULL)
    if nested is not None and set(new) <= {FULL, SLIDING}:
      if new.get(SLIDING, nested) != nested:
        raise base_config.unsupported('rope_parameters', new, 'one kind')
      new = _object(f'rope_parameters.{FULL}', nested)
    return _standard(fields, old or new, theta), None
  unknown = new.keys() - {FULL, SLIDING}
  if unknown:
    raise base_config.unsupported(
        'rope_parameters', new, f'only {FULL} and {SLIDING}'
    )
  full, local = (
      _object(f'rope_parameters.{kind}', new.get(kind) or {})
      for kind in (FULL, SLIDING)
  )
  local_theta = fields.number('rope_local_base_freq', theta, minimum=2.0)
  return (
      _standard(fields, {**full, **old}, theta),
      _standard(fields, local, local_theta),
  )


def both_spellings(fields: base_config.Fields) -> dict[str, Any]:
  """Returns the fields of `config.json` that both versions read alike.

  Args:
    fields: As in `options`.
  """
  full, local = parameters(fields)
  plain = ('rope_theta', 'partial_rotary_factor')
  scaling = {k: v for k, v in full.items() if k not in plain}
  written = {
      'rope_theta': full['rope_theta'],
      'rope_scaling': None if full['rope_type'] == 'default' else scaling,
      'rope_parameters': full,
  }
  if 'partial_rotary_factor' in full:
    written['partial_rotary_factor'] = full['partial_rotary_factor']
  if local is not None:
    written['rope_parameters'] = {FULL: full, SLIDING: local}
    if local['rope_theta'] != full['rope_theta']:
      written['rope_local_base_freq'] = local['rope_theta']
  return written


def _object(name: str, value: Any) -> Mapping[str, Any]:
  if not isinstance(value, dict):
    raise base_config.unsupported(name, value, 'an object there')
  return value


def _standard(
    fields: base_config.Fields, given: Mapping[str, Any], theta: float
) -> dict[str, Any]:
  """Returns one object of `rope_parameters`, all that it needs filled in."""
  given = {k: v for k, v in given.items() if v is not None}
  kind = given.get('rope_type', given.get('type', 'default'))
  if fields.config['model_type'] == 'phi3' and isinstance(kind, str):
    kind = _PHI_KINDS.get(kind, kind)
  if not isinstance(kind, str) or kind not in _FIELDS:
    raise base_config.unsupported(
        'rope_type', kind, f'one of {", ".join(_FIELDS)}'
    )
  for name in given.keys() - _KNOWN:
    raise base_config.unsupported(
        f'rope_parameters.{name}', given[name], 'no such field'
    )
  result = {'rope_type': kind}
  result['rope_theta'] = base_config.number(
      'rope_theta', given.get('rope_theta', theta), minimum=2.0
  )
  part = 'partial_rotary_factor'
  if (fraction := given.get(part, fields.get(part))) is not None:
    result[part] = base_config.number(part, fraction)
    if fields.config['model_type'] != 'phi3' and result[part] != 1.0:
      # Transformers rotates the whole heads of the others all the same.
      raise base_config.unsupported(part, fraction, '1.0')
  result |= {k: given[k] for k in _FIELDS[kind] if k in given}
  if _LENGTH in _FIELDS[kind]:
    # Phi-3 has the length outside of the field, and that one takes precedence.
    length = fields.get(_LENGTH, given.get(_LENGTH))
    if length is None:
      length = _max_length(fields)
    result[_LENGTH] = base_config.integer(_LENGTH, length, minimum=2)
  if kind in ('yarn', 'longrope'):
    result.setdefault('factor', _max_length(fields) / result[_LENGTH])
  return result


def _max_length(fields: base_config.Fields) -> int:
  return fields.integer('max_position_embeddings', None, minimum=2)


def _scaling(
    fields: base_config.Fields, given: Mapping[str, Any]
) -> rotary.Scaling | None:
  kind = given['rope_type']
  if kind == 'default':
    return None
  number = lambda name, default=None: base_config.number(
      name, default if given.get(name) is None else given[name], minimum=1e-6
  )
  found: dict[str, Any] = {'kind': kind, 'factor': number('factor')}
  if kind == 'dynamic':
    found['original_length'] = _max_length(fields)
  elif kind != 'linear':
    found['original_length'] = given[_LENGTH]
  if kind == 'llama3':
    low, high = number('low_freq_factor'), number('high_freq_factor')
    if high <= low:
      raise base_config.unsupported(
          'high_freq_factor', high, f'more than low_freq_factor {low}'
      )
    found |= {'low_freq_factor': low, 'high_freq_factor': high}
  if kind == 'yarn':
    found |= {
        'beta_fast': number('beta_fast', 32),
        'beta_slow': number('beta_slow', 1),
        'truncate': base_config.boolean(
            'truncate', given.get('truncate', True)
        ),
    }
  if kind == 'longrope':
    found['short_factors'] = _numbers(given, 'short_factor')
    found['long_factors'] = _numbers(given, 'long_factor')
  if given.get('attention_factor') is not None:
    found['attention_factor'] = number('attention_factor')
  elif given.get('mscale') and given.get('mscale_all_dim'):
    amplitude = lambda name: (
        0.1 * number(name) * math.log(max(found['factor'], 1.0)) + 1.0
    )
    found['attention_factor'] = amplitude('mscale') / amplitude(
        'mscale_all_dim'
    )
  return rotary.Scaling(**found)


def _numbers(given: Mapping[str, Any], name: str) -> tuple[float, ...]:
  values = given.get(name)
  if not isinstance(values, list) or len(values) > 2**16:
    raise base_config.unsupported(name, values, 'a list of numbers there')
  return tuple(base_config.number(name, x, minimum=1e-6) for x in values)
