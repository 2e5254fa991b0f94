# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MkDocs: pages that are made from the repository, and links to its files.

The pages of methods come from docstrings and gin files, the gin reference from
the comments of gin files, the API reference from all modules. Nothing of
moe_peft is imported.
"""

import ast
import dataclasses
import functools
from pathlib import Path
from pathlib import PurePosixPath
import posixpath
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'moe_peft'
# Documents at the top of the repository, where GitHub and people look first.
TOP = {
    'README.md': 'index.md',
    'implementation.md': 'how-it-works.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
}
_LINK = re.compile(r'(\]\()([^)\s#:]+)(#[^)\s]*)?(\))')
_CODE = {'.gin': 'python', '.py': 'python', '.sh': 'sh', '.yaml': 'yaml'}


class Docstrings(griffe.Extension):
  """Docstrings as Markdown: formulas are code, `<float>` is no HTML tag."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    """Rewrites the docstring of a module, class or function."""
    if obj.docstring:
      obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
  """Fences the indented paragraphs before the sections, escapes tags."""
  paragraphs = docstring.split('\n\n')
  for i, paragraph in enumerate(paragraphs):
    lines = paragraph.splitlines()
    if lines and all(line.startswith('  ') for line in lines):
      paragraphs[i] = f'```\n{paragraph}\n```'
    elif re.match(r'[A-Z]\w+:\n', paragraph):
      break  # Sections, such as `Args:`, are the parser's.
  text = '\n\n'.join(paragraphs)
  text = re.sub(r'(?<![`\w])<(\w+)>(\[[^\]\n]*\])?', r'`<\1>\2`', text)
  return text.replace('][', ']\\[')  # Indices are no references to objects.


@dataclasses.dataclass
class GinFile:
  """What a gin file says.

  Attributes:
    name: Path in the repository.
    header: The comment at its beginning.
    macros: (name, value, comment) of each macro that it sets.
    bindings: (configurable, parameter, value), scopes left out.
    modules: Full names of the imported modules, by their last part.
    includes: Paths of the files that it includes.
  """

  name: str
  header: str
  macros: list[tuple[str, str, str]]
  bindings: list[tuple[str, str, str]]
  modules: dict[str, str]
  includes: list[str]

  def full_name(self, selector: str) -> str:
    """The full name of a configurable that the file names."""
    module, _, name = selector.partition('.')
    return f'{self.modules.get(module, module)}.{name}'


@functools.cache
def gin_files() -> list[GinFile]:
  """All files of gin/, in the order of their names."""
  return [read_gin(path) for path in sorted(ROOT.glob('gin/**/*.gin'))]


def read_gin(path: Path) -> GinFile:
  """Reads a gin file of the repository; it is written in a regular way."""
  text = path.read_text(encoding='utf-8')
  header = re.match(r'(?:#.*\n)*', text)[0]
  macros, bindings, block = [], [], ''
  pattern = re.compile(
      r'(?P<comment>(?:^#.*\n)*)'
      r'^(?P<indent> *)(?P<name>[\w./]+)(?: = (?P<value>.*(?:\n[ )}\]].*)*?)|:)'
      r'(?=\n[^ )}\]]|\n  \w+ = |\n*\Z)',
      re.M,
  )
  for match in pattern.finditer(text, len(header)):
    name, value = match['name'], match['value']
    comment = _uncomment(match['comment'])
    if value is None:
      block = name.rpartition('/')[2]
    elif re.fullmatch('[A-Z][A-Z0-9_]*', name):
      value, _, trailing = value.partition('  # ')
      macros.append((name, value, comment or trailing))
    elif match['indent']:
      bindings.append((block, name, value))
    else:
      bindings.append((*name.rpartition('/')[2].rsplit('.', 1), value))
  imports = re.findall(r'^from ([\w.]+) import (\w+)', text, re.M)
  modules = {name: f'{package}.{name}' for package, name in imports}
  return GinFile(
      path.relative_to(ROOT).as_posix(), _uncomment(header), macros,
      bindings, modules, re.findall(r"^include '(gin/.*)'", text, re.M),
  )


def _uncomment(text: str) -> str:
  return re.sub(r'^# ?', '', text, flags=re.M).strip()


def with_included(gin: GinFile) -> list[tuple[str, str, str]]:
  """The macros of a file, then those of what it includes."""
  own = {macro[0] for macro in gin.macros}
  files = (file for file in gin_files() if file.name in gin.includes)
  macros = (macro for file in files for macro in with_included(file))
  return [*gin.macros, *(macro for macro in macros if macro[0] not in own)]


def macro_table(macros: list[tuple[str, str, str]]) -> str:
  """Macros, their values, and what they are."""
  if not macros:
    return ''
  rows = [('macro', 'value', 'what'), ('---',) * 3]
  for name, value, comment in macros:
    what = comment or macro_meanings().get(name, '')
    value, what = (' '.join(x.split()) for x in (value, as_markdown(what)))
    what = re.sub(r'(`[^`]*`)|\|', lambda m: m[1] or r'\|', what)
    rows.append((f'`{name}`', f'`{value}`', what))
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


@functools.cache
def macro_meanings() -> dict[str, str]:
  """What the docstring says of the first parameter that a macro sets."""
  package = griffe.load(
      'moe_peft', search_paths=[ROOT], docstring_parser='google'
  )
  meanings = {}
  for gin in gin_files():
    for selector, parameter, value in gin.bindings:
      if re.fullmatch('%[A-Z][A-Z0-9_]*', value) and not (
          meanings.get(value[1:])
      ):
        full = gin.full_name(selector)
        if full.startswith('moe_peft.'):
          meanings[value[1:]] = _meaning(package, full, parameter)
  return meanings


def _meaning(package: griffe.Object, name: str, parameter: str) -> str:
  """The entry of a parameter in a docstring, or in that of a base class."""
  try:
    owner = package[name.removeprefix('moe_peft.')]
  except KeyError:  # The reference to it, in the list below, warns.
    return ''
  owners = [owner, *(owner.mro() if owner.is_class else ())]
  for docstring in (x.docstring for x in owners if x.docstring):
    for section in docstring.parse(warnings=False):
      if section.kind.value in ('attributes', 'parameters'):
        for entry in section.value:
          if entry.name == parameter:
            return entry.description
  return ''


def method_pages() -> dict[str, str]:
  """A page for each module of `methods/`: formula, defaults, gin, classes."""
  files = [gin for gin in gin_files() if gin.name.startswith('gin/methods/')]
  pages = {}
  for path in sorted(PACKAGE.glob('methods/[!_]*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    module = f'moe_peft.methods.{path.stem}'
    title, _, rest = ast.get_docstring(tree, clean=False).partition('\n')
    parts = [f'# {title.rstrip(".")}', as_markdown(rest.strip('\n'))]
    for gin in (gin for gin in files if module in gin.modules.values()):
      text = (ROOT / gin.name).read_text(encoding='utf-8').rstrip()
      parts += [
          f'## `{gin.name}`',
          macro_table(with_included(gin)),
          f'```python\n{text}\n```'
      ]
    parts.append('## Code')
    parts += [
        _api(f'{module}.{node.name}', 3)
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith('_')
    ]
    pages[f'methods/{path.stem}.md'] = '\n\n'.join(parts)
  return pages


def gin_page() -> str:
  """The gin reference: every file's macros, then every configurable."""
  parts = [
      '# Gin reference',
      'An experiment includes a model file, a method file and a run file. Each '
      'says in its first lines what it provides and requires. A macro is set '
      'in a leaf file, or on the command line by `--gin.NAME=VALUE`.',
  ]
  folder = ''
  for gin in gin_files():
    if folder != (folder := posixpath.dirname(gin.name)):
      parts.append(f'## `{folder}/`')
    parts += [
        f'### `{posixpath.basename(gin.name)}`',
        f'```text\n{gin.header}\n```',
        macro_table(gin.macros),
    ]
  parts.append('## Configurables')
  parts.append('What the files bind, and to which value or macro.')
  bound = {}
  for gin in gin_files():
    for selector, parameter, value in gin.bindings:
      bound.setdefault(gin.full_name(selector), {}).setdefault(parameter, value)
  for full, parameters in sorted(bound.items()):
    name = full if not full.startswith('moe_peft.') else f'[`{full}`][{full}]'
    parts.append(f'### {name}')
    parts.append('\n'.join(
        f'- `{key} = {" ".join(value.split())}`'
        for key, value in parameters.items()
    ))
  return '\n\n'.join(part for part in parts if part)


def api_pages() -> dict[str, str]:
  """A page for each room but `methods/`, which has pages of its own."""
  rooms = {'moe_peft': sorted(PACKAGE.glob('[!_]*.py'))}
  for path in sorted(PACKAGE.glob('*/__init__.py')):
    if path.parent.name != 'methods':
      rooms[path.parent.name] = sorted(path.parent.rglob('[!_]*.py'))
  pages = {}
  for room, modules in rooms.items():
    parts = [f'# `{room}`']
    for path in modules:
      name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
      parts.append(_api(name, 2))
    pages[f'api/{room}.md'] = '\n\n'.join(parts)
  return pages


def _api(name: str, level: int) -> str:
  return f'::: {name}\n    options:\n      heading_level: {level}'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Lists the pages that are made under the headings of the navigation."""
  made = {'Methods': method_pages(), 'API': api_pages()}
  for entry in config.nav:
    for title, pages in made.items():
      if title in entry:
        entry[title] += [{PurePosixPath(page).stem: page} for page in pages]
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages that are made, and the repository's files they link to."""
  made = {**method_pages(), **api_pages(), 'gin.md': gin_page()}
  for page, text in made.items():
    files.append(File.generated(config, page, content=text))
  for source, page in TOP.items():
    files.append(
        File.generated(config, page, abs_src_path=str(ROOT / source))
    )
  pending = [f for f in files.documentation_pages() if f.src_uri not in made]
  while pending:
    file = pending.pop()
    text, linked = relink(file.src_uri, file.content_string)
    file.content_string = text
    for path, uri in linked.items():
      if files.get_file_from_path(uri) is None:
        new = _repository_file(path, uri, config)
        files.append(new)
        if path.endswith('.md'):
          pending.append(new)
  return files


def relink(page: str, text: str) -> tuple[str, dict[str, str]]:
  """Points a page's links to the places that files have on the site.

  Args:
    page: The page on the site.
    text: Its Markdown, whose links are those of the repository.

  Returns:
    The new text, and where the files lie that it links to, by their path.
  """
  sources = {uri: path for path, uri in TOP.items()}
  if page.startswith('repository/'):
    source = page.removeprefix('repository/')
  else:
    source = sources.get(page, f'docs/{page}')
  linked = {}

  def replace(match: re.Match) -> str:
    path = posixpath.normpath(
        posixpath.join(posixpath.dirname(source), match[2])
    )
    if path.startswith('docs/') and not path.endswith('.py'):
      uri = path.removeprefix('docs/')
    else:
      uri = linked[path] = TOP.get(path) or f'repository/{path}' + (
          '.md' if Path(path).suffix in _CODE else ''
      )
    uri = posixpath.relpath(uri, posixpath.dirname(page) or '.')
    return f'{match[1]}{uri}{match[3] or ""}{match[4]}'

  parts = re.split(r'(^```.*?^```$)', text, flags=re.M | re.S)
  parts[::2] = [_LINK.sub(replace, part) for part in parts[::2]]
  return ''.join(parts), linked


def _repository_file(path: str, uri: str, config: MkDocsConfig) -> File:
  source = ROOT / path
  if not source.is_file():
    raise PluginError(f'A document links to {path}, which is no file.')
  if source.suffix not in _CODE:
    return File.generated(config, uri, abs_src_path=str(source))
  text = source.read_text(encoding='utf-8')
  return File.generated(
      config, uri,
      content=f'# `{path}`\n\n```{_CODE[source.suffix]}\n{text}```\n',
  )
