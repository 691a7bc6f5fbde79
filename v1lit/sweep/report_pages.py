"""A report of a sweep as Markdown, as one HTML file without outside resources, and as LaTeX tables."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence

from v1lit.sweep.report_figures import Drawing
from v1lit.sweep.report_text import Part, Row

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; }
figure { margin: 1rem 0; }
pre { overflow-x: auto; font-size: .8rem; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONG = 60
"""Characters of a cell above which it may be broken into lines."""


# ---- Markdown ----------------------------------------------------------------------------------------------


def markdown(parts: Sequence[Part]) -> str:
    """The report with its figures beside it, in `figures/`."""
    return "\n\n".join(_markdown_of(parts)) + "\n"


def _markdown_of(parts: Sequence[Part]) -> Iterator[str]:
    for number, part in enumerate(parts):
        yield f"{'#' if not number else '##'} {plain(part.title)}"
        yield from map(plain, part.said)
        if part.points:
            yield "\n".join(f"- {plain(point)}" for point in part.points)
        if part.rows:
            columns = list(part.rows[0])
            lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in part.rows)]
            cells = [[*map(plain, line)] if index != 1 else line for index, line in enumerate(lines)]
            yield "\n".join(f"| {' | '.join(line)} |" for line in cells)
        yield from (f"![{plain(name)}](figures/{name}.png)" for name in part.figures)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# ---- HTML --------------------------------------------------------------------------------------------------


def web_page(parts: Sequence[Part], drawings: Sequence[Drawing], recipes: Mapping[str, str]) -> str:
    """The report in one file, without scripts or anything from elsewhere; `recipes` by trial."""
    images = {drawing.name: drawing for drawing in drawings}
    body = "\n".join(_html_of(parts, images))
    folded = "\n".join(
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"
        for name, text in recipes.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(parts[0].title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n{folded}\n</body>\n</html>\n"
    )


def _html_of(parts: Sequence[Part], images: Mapping[str, Drawing]) -> Iterator[str]:
    for number, part in enumerate(parts):
        level = 2 if number else 1
        yield f'<h{level} id="part{number}">{html.escape(part.title)}</h{level}>'
        yield from (f"<p>{html.escape(text)}</p>" for text in part.said)
        if part.points:
            yield f"<ul>{''.join(f'<li>{html.escape(point)}</li>' for point in part.points)}</ul>"
        if part.rows:
            yield f'<div class="wide">{_html_table(part.rows)}</div>'
        for name in part.figures:
            data = b64encode(images[name].png).decode()
            title = html.escape(images[name].title)
            yield f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
        if not number:
            titles = [html.escape(other.title) for other in parts]
            links = [
                f'<li><a href="#part{place}">{title}</a></li>' for place, title in enumerate(titles) if place
            ]
            yield f"<nav><ol>{''.join(links)}</ol></nav>"


def _html_table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    lines = "\n".join(f"<tr>{''.join(map(_html_cell, row.values()))}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _html_cell(text: str) -> str:
    kind = ' class="long"' if len(text) > LONG else ""
    return f"<td{kind}>{html.escape(text)}</td>"


# ---- LaTeX -------------------------------------------------------------------------------------------------


def latex(parts: Sequence[Part]) -> str:
    """The tables for a paper, each in a `table` of its own, with the rules of booktabs."""
    import pandas as pd

    head = r"% \input this file; it needs \usepackage{booktabs}"
    tables = [head]
    for part in parts:
        if part.in_paper and part.rows:
            rows = pd.DataFrame([{name: _one_line(text) for name, text in row.items()} for row in part.rows])
            text = rows.to_latex(index=False, escape=True, caption=_escaped(part.title), position="t")
            tables.append(_signs(text).strip())
    return "\n\n".join(tables) + "\n"


def _escaped(text: str) -> str:
    """A caption, which pandas does not escape."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(sign, sign) for sign in text)


def _signs(text: str) -> str:
    """Signs that old engines do not know, in ASCII."""
    for sign, code in {"±": r"$\pm$", "−": "$-$", "–": "--", "≥": r"$\geq$"}.items():
        text = text.replace(sign, code)
    return text
