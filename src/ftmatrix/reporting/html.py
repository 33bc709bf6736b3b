"""The report as one HTML file that fetches nothing."""

from collections.abc import Sequence
from html import escape
from string import Template

from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.plots.style import Plot
from ftmatrix.reporting.sections import Section, pair_sections, sections
from ftmatrix.reporting.summary import Summary

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --ground: #fff; --line: #d0d7de; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --ground: #0d1117; --line: #30363d; --band: #161b22; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--ground); color: var(--ink);
       font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.1rem 0 .3rem; }
nav { color: var(--soft); font-size: .85rem; }
nav a { color: inherit; margin-right: .9rem; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th { white-space: normal; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--band); }
.text { text-align: left; white-space: normal; }
.short { white-space: nowrap; }
.note, figcaption { color: var(--soft); font-size: .86rem; max-width: 60rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; max-width: 60rem; }
figure { margin: 0 0 1rem; }
figure svg { width: 100%; height: auto; max-width: 64rem; }
.answer { padding: .05rem .5rem; border-radius: .8rem; border: 1px solid currentColor; white-space: nowrap; }
.supported { color: light-dark(#116329, #56d364); }
.contradicted { color: light-dark(#a40e26, #ff7b72); }
.inconclusive { color: light-dark(#7d4e00, #e3b341); }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #333; --ground: #fff; --line: #999; --band: #fff; }
  body { padding: 0; max-width: none; }
  figure, tr { break-inside: avoid; }
  nav { display: none; }
  .wide { overflow: visible; }
  th, td, .short { white-space: normal; padding: .12rem .25rem; }
  table { font-size: .6rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
<nav>$links</nav>
$body
</body>
</html>
""")
SHORT = 24
"""Letters of a text that are never broken into lines."""
ANSWERS = ("supported", "contradicted", "inconclusive")


def as_html(summary: Summary, contexts: Sequence[ContextDetails], plots: Sequence[Plot]) -> str:
    """The whole report. Whatever a user called a model, a study or an intent is text in it, never markup."""
    first, last = sections(summary), pair_sections(contexts)
    parts = [*map(_part, first), *map(_figure, plots), *map(_part, last)]
    named = [section.title for section in [*first, *last] if not section.part]
    links = [_link(title, title) for title in named]
    links += [_link(plot.name, plot.title) for plot in plots if plot.name.startswith("rates")]
    title = escape(f"{summary.study}: methods, rates and sizes compared")
    return PAGE.substitute(title=title, links="\n".join(links), body="\n".join(parts))


def _link(place: str, title: str) -> str:
    return f'<a href="#{escape(place)}">{escape(title)}</a>'


def _part(section: Section) -> str:
    heading = "h3" if section.part else "h2"
    return f'<{heading} id="{escape(section.title)}">{escape(section.title)}</{heading}>\n{_section(section)}'


def _section(section: Section) -> str:
    if not section.rows:
        return f"<ul>\n{''.join(f'<li>{escape(note)}</li>' for note in section.notes)}\n</ul>"
    text = [title.startswith(" ") for title in section.header]
    header = "".join(_cell("th", title.strip(), left) for title, left in zip(section.header, text, strict=True))
    rows = "\n".join(
        f"<tr>{''.join(_cell('td', cell, left) for cell, left in zip(row, text, strict=True))}</tr>"
        for row in section.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return (
        f'<div class="wide"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{notes}'
    )


def _cell(kind: str, text: str, left: bool) -> str:
    shown = f'<span class="answer {text}">{text}</span>' if text in ANSWERS else escape(text)
    if not left:
        return f"<{kind}>{shown}</{kind}>"
    return f'<{kind} class="text{" short" if len(text) <= SHORT else ""}">{shown}</{kind}>'


def _figure(plot: Plot) -> str:
    heading = f'<h2 id="{escape(plot.name)}">{escape(plot.title)}</h2>'
    return f"{heading}\n<figure>\n{plot.svg()}\n<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
