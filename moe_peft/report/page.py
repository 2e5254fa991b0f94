# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about one or several runs."""

from collections.abc import Sequence
import os
from pathlib import Path

from moe_peft import errors
from moe_peft.report import budget_section
from moe_peft.report import experts_section
from moe_peft.report import markup
from moe_peft.report import results_section
from moe_peft.report import routing_section
from moe_peft.report import sections
from moe_peft.report import style
from moe_peft.report import tokens_section
from moe_peft.runs import run as run_lib

# With more runs the lines of a panel can no longer be told apart.
MAX_RUNS = 20

_SECTIONS = (
    ('results', 'Results', results_section.results),
    ('budget', 'Methods at their budgets', budget_section.budget),
    ('training', 'Training', sections.training),
    ('evaluation', 'Evaluation during training', sections.evaluation),
    ('routing', 'What the routers learned', routing_section.routing),
    ('routers', 'Routers over time', experts_section.over_time),
    ('tokens', 'Tokens and their experts', tokens_section.tokens),
    ('experts', 'Single experts', experts_section.experts),
)


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
  """Writes the page; an older page is replaced only by a whole new one.

  Args:
    run_dirs: 1 to 20 run directories (MODEL_DIR).
    out: the HTML file to write.

  Returns:
    `out`.

  Raises:
    UserError: a run cannot be read, there are too many, or `out` cannot be
      written.
  """
  if len(run_dirs) > MAX_RUNS:
    raise errors.UserError(
        f'{len(run_dirs)} runs are too many for one page: give at most'
        f' {MAX_RUNS}.'
    )
  runs = run_lib.read_all([Path(d) for d in run_dirs])
  out = Path(out)
  if out.is_dir():
    raise errors.UserError(
        f'--out {out} is a directory: name the HTML file to write.'
    )
  text = page(runs)
  partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
  try:
    partial.write_bytes(text.encode('utf-8', 'replace'))
    os.replace(partial, out)
  except OSError as e:
    partial.unlink(missing_ok=True)
    raise errors.UserError(
        f'Cannot write the report {out}: {e.strerror}. Choose another place'
        ' with --out.'
    ) from e
  return out


def page(runs: Sequence[run_lib.Run]) -> str:
  """The whole page as text."""
  title = markup.escape(sections.title(runs))
  links = ''.join(
      f'<li><a href="#{name}">{heading}</a></li>'
      for name, heading, _ in _SECTIONS
  )
  body = '\n'.join(
      f'<section id="{name}"><h2>{heading}</h2>\n{build(runs)}</section>'
      for name, heading, build in _SECTIONS
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style.CSS}</style>
</head>
<body><main>
<header>
<p class="muted">moe_peft report</p>
<h1>{title}</h1>
{sections.header(runs)}
{sections.notices(runs)}
<nav><ul>{links}<li><a href="#configuration">Configuration</a></li></ul></nav>
</header>
{body}
<section id="configuration"><h2>Configuration</h2>
{_configuration(runs)}</section>
<footer>{markup.escape(', '.join(str(r.path) for r in runs))}</footer>
</main></body>
</html>
"""


def _configuration(runs: Sequence[run_lib.Run]) -> str:
  blocks = []
  for run in runs:
    if run.config:
      name = f' of {markup.escape(run.name)}' if len(runs) > 1 else ''
      blocks.append(
          f'<details><summary>Resolved gin configuration{name}</summary>'
          f'<pre>{markup.escape(run.config)}</pre></details>'
      )
  if not blocks:
    return '<p class="muted">The run holds no config.gin.</p>'
  return (
      '<p>Every binding that was in effect; with it the run can be'
      ' repeated.</p>' + '\n'.join(blocks)
  )
