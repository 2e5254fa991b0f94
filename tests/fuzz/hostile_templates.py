# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chat templates that leave the sandbox, or work and grow without end."""

from tests.fuzz import mutations


def mutate(random: mutations.Random, content: bytes) -> bytes:
  """Mutates a Jinja template: adds what is hostile, or lines and words."""
  lines = content.decode().split('\n')
  if random.random() < 0.5:
    lines.insert(random.randrange(len(lines) + 1), random.choice(_JINJA))
  else:
    at = random.randrange(len(lines))
    words = lines[at].split(' ')
    words[random.randrange(len(words))] = random.choice(_JINJA_WORDS)
    lines[at] = ' '.join(words)
  mutant = '\n'.join(lines).encode()
  return mutant if random.random() < 0.7 else mutations.as_text(random, mutant)


_GROWING = '{% set n = namespace(x="a") %}{% for i in range(99) %}{% set n.x = '
_JINJA = (
    "{{ ''.__class__.__base__.__subclasses__() }}", '{{ self.__init__ }}',
    '{{ messages.__class__.__mro__ }}', '{{ cycler.__init__.__globals__ }}',
    '{{ "{0.__class__.__mro__}".format(messages) }}', '{{ lipsum }}',
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
    '{% endfor %}', '{% for i in range(99999999999) %}{% endfor %}',
    *(f'{_GROWING}{x} %}}{{% endfor %}}' for x in (
        'n.x ~ n.x', 'n.x + n.x', 'n.x * 9', '[n.x, n.x]', '(n.x, n.x)',
        'n.x|replace("a", "aa")', '[n.x, n.x]|join', '"%s%s" % (n.x, n.x)',
        '"{0}{0}".format(n.x)', '"%s%s"|format(n.x, n.x)', 'n.x|tojson|tojson',
        'n.x|list + n.x|list', 'n.x|urlencode', 'dict(a=n.x, b=n.x)',
        'n.x.replace("a", "aa")', '"".join([n.x, n.x])', 'n.x|escape ~ n.x',
        'n.x|map("string")|list', '(n.x ~ "%")|urlize', 'n.x|wordwrap(1)')),
    '{{ "x" * 10**9 }}', '{{ 10**9 * "x" }}', '{{ (1,) * 10**9 }}',
    '{{ 9**9**9**9 }}', '{{ "x"|center(10**9) }}', '{{ "x".zfill(10**9) }}',
    '{{ "x".ljust(9999999999) }}', '{{ "%9999999999d" % 1 }}',
    '{{ "%*d" % (9999999999, 1) }}', '{{ "%9999999999d"|format(1) }}',
    '{{ "{:9999999999}".format(1) }}', '{{ "{:{w}}".format(1, w=9999999999) }}',
    '{{ [1]|batch(9999999999, 0)|list }}', '{{ [1]|slice(99999999)|list }}',
    '{{ lipsum(n=9999999) }}', '{{ messages|tojson(indent=999999999) }}',
    '{{ "a\nb"|indent(999999999) }}', '{{ messages|pprint }}',
    '{{ ("x" * 999999).replace("x", "y" * 999999) }}',
    '{{ ("x" * 9999999)|list|sort|unique|list|length }}',
    '{{ ("y" * 9999999).join("x" * 9999999) }}', '{{ "\t".expandtabs(10**9) }}',
    '{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}',
    '{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}'
    '{% endmacro %}{{ f(40) }}', '{% include "/etc/passwd" %}',
    '{% import "os" as os %}', '{% extends "x" %}', '{{ messages.append(1) }}',
    '{{ raise_exception(messages) }}', '{{ strftime_now("%Y") }}',
    '{{ strftime_now("\x00%") }}', '{{ strftime_now(3) }}', '{% generation %}',
    '{% endgeneration %}', '{% generation %}{% generation %}x'
    '{% endgeneration %}{% endgeneration %}', '{% break %}', '{% continue %}',
    '{{ {}|xmlattr }}', '{{ 1/0 }}', '{{ "9" * 9999|int }}', '{% block x %}',
    '{{ ("9" * 99999)|int }}', '{{ (9**99999)|string }}', '{% raw %}', '{#',
    '{% set messages = 3 %}', '{% for m in messages recursive %}'
    '{{ loop(messages) }}{% endfor %}', '{{ "\\ud800" }}',
    '{{ bos_token * 3 }}', '{{ [[[1]]]|sum(start=[]) }}',
    '{{ range(9)|random }}', '{{ now() }}',
    '{{ undefined.x.y }}', '{{ caller() }}', '{{ varargs }}', '{{ loop }}',
    *('{{ ' + x * 500 + '1' + y * 500 + ' }}' for x, y in ('()', '[]')),
    '{% if 1 %}' * 300 + '{% endif %}' * 300, '{{ 1' + ' ~ 1' * 5000 + ' }}',
)  # fmt: skip
_JINJA_WORDS = (
    '{{', '}}', '{%', '%}', '{#', '#}', '-%}', 'in', 'for', 'if', 'endif', 'is',
    '|', '| tojson', '| trim', '| length', '| first', '~', '+', '(', ')', '[0]',
    '[-1]', '[::-1]', '.role', '.x', 'messages', 'message', 'tools', 'none',
    'message.content', 'add_generation_prompt', "'<|im_end|>'", 'eos_token',
    'endfor', 'namespace()', 'not', '==', '\x00', '\u2028', '\U0010fffc',
    '\ufffb', '9' * 50, 'é' * 500, "'" + 'x' * 5000 + "'", '**', '//', '%',
)  # fmt: skip
