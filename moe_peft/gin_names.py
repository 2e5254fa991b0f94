# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of gin files before version 0.2, and what they are called now.

`renamed` gives the new name for a message. `upgrade` rewrites a whole
`config.gin`, which a run of version 0.1 has written, so that the run still
evaluates, answers, exports and resumes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from moe_peft import errors

# Modules below `moe_peft`.
MODULES = {
    **{
        name: f'core.{name}'
        for name in (
            'adapter', 'capacity', 'dispatch', 'einsum_layers', 'inject',
            'losses', 'observe', 'partitioning', 'routing', 'trainable',
        )
    },
    'command_line': 'gin_files',
    'gating': 'core.selection',
    'thin': 'core.low_rank',
    'budget': 'training.budget',
    'checkpoints': 'training.checkpoints',
    'data.tasks': 'data.sets.words',
    'data.p3': 'data.sets.p3',
    'data.commonsense': 'data.sets.commonsense',
    'data.math_problems': 'data.sets.math_problems',
    'evaluation.metrics': 'data.metrics',
}
# Names of the decoder when it was LLaMA's alone, as in version 0.1.
_DECODER = {
    'from moe_peft.models import llama': 'from moe_peft.models import decoder\n'
    'from moe_peft.models import decoder_config',
    'llama.LlamaConfig': 'decoder_config.DecoderConfig',
    'llama.Transformer': 'decoder.Transformer',
}
MACROS = {'RENORMALISE': 'NORMALIZE'}
# Parameters of routers, and whose they are now.
PARAMETERS = {
    'selection': 'select, for example @selection.TopK()',
    'num_selected_experts': 'selection.TopK.k',
    'renormalise': 'selection.TopK.normalize',
    'gate_dropout': 'selection.TopK.dropout',
    'unit': 'scores, for example @scores.HeadScores()',
    'load_balance': 'losses.LoadBalance.form',
    'max_threshold': 'adamole.Threshold.max_threshold',
    'score': 'select, for example @smora.BiasedTopK()',
    'site_input': 'inject.InputRule',
    'siblings': 'inject.BlockRule',
    'consistency': 'adamix.ConsistencyRule',
}
_SELECTED = {
    'num_selected_experts': 'k', 'renormalise': 'normalize',
    'gate_dropout': 'dropout', 'max_threshold': 'max_threshold',
    'first_k': 'first_k', 'growth_steps': 'growth_steps',
}
_TOP_2 = {'k': '2', 'normalize': 'True'}
# Routers of methods: the part that selects, and what differs from its defaults.
_ROUTERS = {
    'adamix.AdaMixRouter': ('adamix.RandomChoice', {}),
    'adamole.AdaMoLERouter': ('adamole.Threshold', {}),
    'expert_choice.ExpertChoiceRouter': ('expert_choice.ChooseTokens', {}),
    'mixlora.MixLoRARouter': ('selection.TopK', _TOP_2),
    'moelora.MoELoRARouter': ('selection.TopK', _TOP_2),
    'mola.MoLARouter': ('selection.TopK', _TOP_2),
    'mosld.MoSLDRouter': ('selection.TopK', _TOP_2),
    'sira.SiRARouter': ('selection.TopK', {'k': '4', 'dropout': '0.1'}),
    'smear.SMEARRouter': (
        'selection.Soft', {'normalize': 'True', 'dropout': '0.1'}
    ),
    'smoe_dropout.SMoEDropoutRouter': ('smoe_dropout.GrowingTopK', {}),
    'smora.SMoRARouter': ('smora.BiasedTopK', {}),
}
_SELECTIONS = {
    'all': 'selection.Soft', 'top_k': 'selection.TopK',
    'random': 'adamix.RandomChoice', 'threshold': 'adamole.Threshold',
    'expert_choice': 'expert_choice.ChooseTokens',
}
_UNITS = {'head': 'scores.HeadScores', 'sequence': 'scores.SequenceScores'}
_ROOMS = {
    name: 'methods'
    for name in ('adamix', 'adamole', 'expert_choice', 'smoe_dropout', 'smora')
} | dict.fromkeys(('scores', 'selection', 'losses'), 'core')


def renamed(message: str) -> errors.UserError | None:
  """Returns the error for an old name in one of gin's messages, or None."""
  if (moved := _moved(message)) is not None:
    return moved
  if 'has no attribute AdapterRule' in message:
    return errors.UserError(
        'There are three kinds of rules now.',
        where='inject.AdapterRule',
        remedy='Write inject.OutputRule; inject.InputRule for site_input = '
        'True; inject.BlockRule for siblings.',
    )
  gone = re.search(
      r"'([\w.]+)' doesn't have a parameter named '(\w+)'", message
  )
  if gone and gone[2] in PARAMETERS:
    return errors.UserError(
        f'{gone[1]} has no {gone[2]} any more.',
        where=f'{gone[1]}.{gone[2]}',
        remedy=f'Bind {PARAMETERS[gone[2]]}.',
    )
  return None


def _moved(message: str) -> errors.UserError | None:
  """The error for a module that has moved."""
  moved = re.search(
      r"cannot import name '(\w+)' from 'moe_peft'|"
      r"No module named 'moe_peft\.([\w.]+)'",
      message,
  )
  old = moved and (moved[1] or moved[2])
  if old in MODULES:
    return errors.UserError(
        f'moe_peft.{old} has moved.',
        where=f'moe_peft.{old}',
        remedy=f'Import moe_peft.{MODULES[old]}.',
    )
  if re.search(r"No module named 'moe_peft\.models\.llama'", message):
    return errors.UserError(
        'models/llama.py is models/decoder.py now.',
        where='moe_peft.models.llama',
        remedy='Import the base again, or write decoder_config.DecoderConfig '
        'for llama.LlamaConfig and include '
        'gin/models/decoder_architecture.gin.',
    )
  return None


@dataclasses.dataclass(frozen=True)
class _Reference:
  """A reference in a value, with gin's own source as its text."""

  source: str

  def __repr__(self) -> str:
    return self.source


class Delegate:
  """Makes the references of gin's parser."""

  def configurable_reference(self, name: str, evaluate: bool) -> _Reference:
    return _Reference(f'@{name}()' if evaluate else f'@{name}')

  def macro(self, name: str) -> _Reference:
    return _Reference(f'%{MACROS.get(name, name)}')


def rename_decoder(text: str) -> str:
  """Rewrites a `config.gin` in which the decoder is called `llama`."""
  for old, new in _DECODER.items():
    text = re.sub(rf'(?<![\w./]){re.escape(old)}(?!\w)', new, text)
  return text


def is_old(text: str) -> bool:
  """Whether a configuration is one of version 0.1, by what it imports."""
  return re.search(r'^from moe_peft import inject$', text, re.M) is not None


def upgrade(text: str) -> str:
  """Rewrites the `config.gin` of a run of version 0.1.

  Args:
    text: The configuration, without includes, as gin writes it.

  Returns:
    The same configuration in the names of today.

  Raises:
    errors.UserError: For an option that is gone.
  """
  from gin import config_parser

  imports, bindings = [], {}
  for statement in config_parser.ConfigParser(text, Delegate()):
    if isinstance(statement, config_parser.ImportStatement):
      imports.append(_import(statement))
    else:
      name = MACROS.get(statement.selector, statement.selector)
      key = statement.scope, name
      bindings.setdefault(key, {})[statement.arg_name] = repr(statement.value)
  rules = _rules(bindings)
  for key in list(bindings):
    if key[1] in _ROUTERS or key[1] == 'routing.Router':
      _router(bindings, key)
  _capacity(bindings)
  lines = [
      f'{f"{scope}/" if scope else ""}{selector}'
      f'{f".{name}" if name else ""} = {value}'
      for (scope, selector), arguments in bindings.items()
      for name, value in arguments.items()
  ]
  body = '\n'.join(lines) + '\n'
  for old, new in rules.items():
    body = re.sub(rf'(?<![\w./]){re.escape(old)}(?![\w.])', new, body)
    body = body.replace(f'{old}.', f'{new}.')
  for name, room in _ROOMS.items():
    line = f'from moe_peft.{room} import {name}'
    if re.search(rf'(?<![\w.]){name}\.', body) and line not in imports:
      imports.append(line)
  return '\n'.join(imports) + '\n' + body


def _import(statement: Any) -> str:
  module = statement.module
  if module.startswith('moe_peft.'):
    inside = module.removeprefix('moe_peft.')
    module = f'moe_peft.{MODULES.get(inside, inside)}'
  if not statement.is_from:
    return f'import {module}'
  package, _, name = module.rpartition('.')
  return f'from {package} import {name}'


def _rules(bindings: Mapping[Any, dict[str, str]]) -> dict[str, str]:
  """Returns the new name of each rule, by its old one with its scope."""
  module = bindings.get(('', 'inject.AdaptedModule'), {})
  twice = module.pop('consistency', 'False') == 'True'
  names = {}
  for (scope, selector), arguments in bindings.items():
    if selector != 'inject.AdapterRule':
      continue
    kind = 'adamix.ConsistencyRule' if twice else 'inject.OutputRule'
    if arguments.pop('site_input', 'False') == 'True':
      kind = 'inject.InputRule'
    elif arguments.get('siblings', '()') != '()':
      kind = 'inject.BlockRule'
    prefix = f'{scope}/' if scope else ''
    names[f'{prefix}inject.AdapterRule'] = f'{prefix}{kind}'
  # The longest first: a name without a scope is a part of those with one.
  return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _router(
    bindings: dict[tuple[str, str], dict[str, str]], key: tuple[str, str]
) -> None:
  """Turns the options of one router into its parts."""
  scope, selector = key
  options = bindings[key]
  value = lambda name: _value(bindings, options.pop(name, 'None'))
  select, fields = _ROUTERS.get(selector, (None, {}))
  chosen = value('selection')
  select = _SELECTIONS.get(chosen, select or 'selection.Soft')
  unit, form = value('unit'), value('load_balance')
  fields = dict(fields)
  for old, new in _SELECTED.items():
    if old in options:
      fields[new] = options.pop(old)
  gone = options.keys() - {'capacity', 'num_experts'}
  if gone or unit not in (None, 'token', 'batch', *_UNITS):
    raise errors.UserError(
        f'{selector} has options that are gone: '
        f'{", ".join(sorted(gone)) or f"unit = {unit!r}"}.',
        where=selector,
        remedy='Use the version of moe_peft that wrote the run.',
    )
  if chosen == 'threshold':
    options['scores'] = '@adamole.ThresholdScores()'
  if unit in _UNITS:
    options['scores'] = f'@{_UNITS[unit]}()'
  if form == 'sira':
    options['losses'] = '(@losses.LoadBalance(), @losses.RouterZ())'
    bindings[scope, 'losses.LoadBalance'] = {'form': "'sira'"}
  if fields or chosen:
    options['select'] = f'@{select}()'
    bindings[scope, select] = fields


def _capacity(bindings: dict[tuple[str, str], dict[str, str]]) -> None:
  for (_, selector), arguments in bindings.items():
    counts = selector == 'capacity.Capacity' and arguments.pop(
        'counts_selected', 'False'
    )
    if counts == 'True':
      raise errors.UserError(
          'counts_selected is gone.',
          where='capacity.Capacity.counts_selected',
          remedy='Multiply CAPACITY_FACTOR by NUM_SELECTED_EXPERTS.',
      )


def _value(
    bindings: Mapping[tuple[str, str], Mapping[str, str]], source: str
) -> str | None:
  """The text of a string, through macros; None for no value."""
  while source.startswith('%'):
    arguments: Sequence[str] = list(
        bindings.get(('', source[1:]), {'': 'None'}).values()
    )
    source = arguments[0]
  return None if source == 'None' else source.strip('\'"')
