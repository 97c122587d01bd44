"""An executed notebook as one HTML page: no script, no network, code folded, a way back.

Formulas are drawn as SVG. A bar that stays in view leads back to the report and to each heading.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert import HTMLExporter

TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock -%}"""
CODE_OR_MATH = re.compile(
    r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?=\S)([^$\n`]+?)(?<=\S)\$(?!\d)", re.DOTALL
)
HEADING = re.compile(r"^(#{1,2}) (.+)$", re.MULTILINE)
ATTACHMENT = re.compile(r"attachment:([^\s)\"'>]+)")
Link = tuple[str, str]  # target and text
STYLE = Path(__file__).with_name("page.css")


def notebook_html(path: Path, before: Link | None = None, after: Link | None = None) -> str:
    """An executed notebook as one self-contained HTML page that needs no script and no network.

    before, after: the pages of the notebooks beside it.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook["metadata"].pop("widgets", None)
    contents = list(_headings(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = draw_formulas(_without_lost_attachments(cell))
    exporter = HTMLExporter(raw_template=TEMPLATE, embed_images=True)
    numbers = itertools.count()  # in place of random ids: equal notebooks give equal pages
    exporter.environment.globals["uuid4"] = lambda: f"output-{next(numbers)}"
    resources = {"metadata": {"name": path.stem}}
    page = exporter.from_notebook_node(notebook, resources=resources)[0]
    return _with_bar(page, _bar(path.stem.partition(".")[0], contents, before, after))


def _without_lost_attachments(cell: nbformat.NotebookNode) -> str:
    """A cell's text; nbconvert makes no page of one that shows an attachment it does not have."""
    there = cell.get("attachments", {})

    def one(match: re.Match[str]) -> str:
        return match[0] if match[1] in there else f"missing-{match[0]}"

    return ATTACHMENT.sub(one, cell["source"])


def anchor(heading: str) -> str:
    """The id that the page gives to a heading."""
    return heading.replace(" ", "-")


def _headings(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, str]]:
    """Depth (1 or 2) and text of the headings, code blocks apart."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"```.*?```", "", cell["source"], flags=re.DOTALL)
            for marks, heading in HEADING.findall(text):
                yield len(marks), heading.strip()


def _bar(
    name: str, contents: list[tuple[int, str]], before: Link | None, after: Link | None
) -> str:
    """The bar: back to the report, the notebooks beside this one, and its contents."""
    links = []
    for level, heading in contents:
        target = html.escape(anchor(heading), quote=True)
        links.append(f'<a class="h{level}" href="#{target}">{html.escape(heading)}</a>')
    listed = f"<details><summary>contents</summary><div>{''.join(links)}</div></details>"
    back = '<a href="index.html">← report</a>'
    beside = _link(before, "prev", "← {}") + _link(after, "next", "{} →")
    name = f"<b>{html.escape(name)}</b>"
    return f'<nav class="bar">{back}{name}{beside}{listed if links else ""}</nav>'


def _link(page: Link | None, relation: str, form: str) -> str:
    if page is None:
        return ""
    target, text = (html.escape(part, quote=True) for part in page)
    return f'<a rel="{relation}" href="{target}">{form.format(text)}</a>'


def _with_bar(page: str, bar: str) -> str:
    """Put the style and the bar into a page."""
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    page = page.replace("</head>", f"{style}</head>", 1)
    return re.sub(r"(<body[^>]*>)", lambda match: match[1] + bar, page, count=1)


def draw_formulas(markdown: str) -> str:
    """Replace $…$ and $$…$$ outside code by images: a page that asks nobody for MathJax."""

    def one(match: re.Match[str]) -> str:
        code, display, inline = match.groups()
        return code or _formula(display or inline, bool(display))

    return CODE_OR_MATH.sub(one, markdown)


def _formula(latex: str, display: bool) -> str:
    """A formula as an SVG image, or its source where mathtext does not know a command in it."""
    picture = io.BytesIO()
    try:
        depth = math_to_image(f"${' '.join(latex.split())}$", picture, format="svg", dpi=72)
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", picture.getvalue(), flags=re.DOTALL)  # a date
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    style = "display:block;margin:auto" if display else f"vertical-align:{-depth:.1f}pt"
    image = f'<img style="{style}" alt="{html.escape(latex)}" src="{source}"/>'
    return f'<span class="wide">{image}</span>' if display else image
