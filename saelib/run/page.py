"""An executed notebook as one HTML page: no script, no network, code folded, a way back.

Formulas are drawn as SVG. A bar that stays in view leads back to the report and to each heading.
"""

from __future__ import annotations

import base64
import html
import io
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
STYLE = Path(__file__).with_name("page.css")


def notebook_html(path: Path) -> str:
    """An executed notebook as one self-contained HTML page that needs no script and no network."""
    notebook = nbformat.read(path, as_version=4)
    notebook["metadata"].pop("widgets", None)
    contents = list(_headings(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = draw_formulas(cell["source"])
    exporter = HTMLExporter(raw_template=TEMPLATE, embed_images=True)
    resources = {"metadata": {"name": path.stem}}
    page = exporter.from_notebook_node(notebook, resources=resources)[0]
    return _with_bar(page, path.stem.partition(".")[0], contents)


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


def _with_bar(page: str, name: str, contents: list[tuple[int, str]]) -> str:
    """Put the style and the bar with the contents into a page."""
    links = []
    for level, heading in contents:
        target = html.escape(anchor(heading), quote=True)
        links.append(f'<a class="h{level}" href="#{target}">{html.escape(heading)}</a>')
    listed = f"<details><summary>contents</summary><div>{''.join(links)}</div></details>"
    back = '<a href="index.html">← report</a>'
    bar = f'<nav class="bar">{back}<b>{html.escape(name)}</b>{listed if links else ""}</nav>'
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
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
    style = "display:block;margin:auto" if display else f"vertical-align:{-depth:.1f}pt"
    return f'<img style="{style}" alt="{html.escape(latex)}" src="{source}"/>'
