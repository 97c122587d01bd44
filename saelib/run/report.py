"""One folder to read or to mail: every executed notebook as HTML, and an index with verdicts and
key figures.

Nothing in it asks the network for anything: no scripts, figures copied beside the pages, formulas
drawn as SVG. A notebook hands over its verdicts with `record_verdicts`; the index only shows what
was recorded.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from matplotlib.mathtext import math_to_image
from nbconvert import HTMLExporter

from saelib.env import data_dir, root
from saelib.files import write_text
from saelib.study.finding import (
    OLDER_WORDS,
    kept_in,
    load,
    read_abstract,
    read_table,
    record_abstract,
    record_table,
)
from saelib.text.assets import EMBEDDED, MODEL_LABEL

__all__ = [
    "read_abstract",
    "read_table",
    "record_abstract",
    "record_table",
]  # as notebooks import them

VERDICTS = ("replicates", "does not replicate", "cannot tell")
FIELDS = ("finding", "claim", "verdict", "effect", "cell", "figure")
KEY_FINDINGS = ("F0", "F1", "F2", "F3f", "F3d")  # whose figures stand under the abstract
FINDINGS = {  # as reported by the experiment the workbook reproduces
    "F0": "Not reported by the experiment: what has to be known before.",
    "F1": "A cosine learning rate with hard restarts trains badly.",
    "F2": "The Gated SAE is worse than the plain one, because neurons were not resampled.",
    "F3": "The layers near the input and in the middle train; the one near the output does not.",
    "F4": "Reconstruction follows the L1 coefficient.",
}

# --- verdicts -------------------------------------------------------------------------------------


def _check_verdict(entry: Mapping[str, Any], where: str) -> None:
    if set(entry) != set(FIELDS):
        raise ValueError(f"{where}: fields {sorted(entry)}; expected {sorted(FIELDS)}")
    for field in FIELDS:
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{where}: {field} = {entry[field]!r}: expected text")
    if entry["verdict"] not in VERDICTS:
        raise ValueError(
            f"{where}: verdict = {entry['verdict']!r}: expected one of {', '.join(VERDICTS)}"
        )
    if not re.fullmatch(r"F\d+[a-z]?", entry["finding"]):
        raise ValueError(f"{where}: finding = {entry['finding']!r}: expected F1, F2, F2a, …")
    if Path(entry["figure"]).is_absolute() or not (root() / entry["figure"]).is_file():
        raise ValueError(
            f"{where}: figure = {entry['figure']!r}: no such file; expected figures/<profile>/NAME.png"
        )


def record_verdicts(profile: str, notebook: str, verdicts: Sequence[Mapping[str, str]]) -> Path:
    """Write a notebook's verdicts for the index; replaces what the notebook recorded before.

    Each verdict has `finding` ("F1"), `claim`, `verdict` (one of `VERDICTS`), `effect` (the
    computed numbers with their interval), `cell` (the heading above the cell that computes it) and
    `figure` ("figures/<profile>/NAME.png", which must exist). Anything else raises ValueError
    naming the field.
    """
    for i, entry in enumerate(verdicts):
        _check_verdict(entry, f"verdict {i} of {notebook}")
    path = kept_in(profile, "verdicts") / f"{notebook}.json"
    write_text(
        path, json.dumps([dict(v) for v in verdicts], indent=1, sort_keys=True, ensure_ascii=False)
    )
    return path


def read_verdicts(profile: str) -> list[dict[str, str]]:
    """Every recorded finding of a profile with its `notebook`, sorted by name, in the fields of
    `FIELDS`.
    """
    names = {"name": "finding", "section": "cell"}
    words = {new: old for old, new in OLDER_WORDS.items()}
    verdicts = []
    for finding in load(profile):
        kept = ("name", "claim", "section", "figure", "notebook")
        entry = {names.get(field, field): finding[field] for field in kept}
        entry["verdict"] = words[finding["verdict"]]
        entry["effect"] = " ".join(filter(None, (finding["sentence"], finding["beside_recorded"])))
        verdicts.append(entry)
    return verdicts


# --- notebooks as HTML ----------------------------------------------------------------------------

OFFLINE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}{%- block html_head_js_mermaidjs -%}{%- endblock -%}"""

CODE_OR_MATH = re.compile(
    r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?=\S)([^$\n`]+?)(?<=\S)\$(?!\d)", re.DOTALL
)


def _formula(latex: str, display: bool) -> str:
    """A formula as an SVG image, or its source where matplotlib's mathtext does not know a command
    in it.
    """
    picture = io.BytesIO()
    try:
        depth = math_to_image(f"${' '.join(latex.split())}$", picture, format="svg", dpi=72)
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    data = base64.b64encode(picture.getvalue()).decode()
    style = "display:block;margin:auto" if display else f"vertical-align:{-depth:.1f}pt"
    return (
        f'<img style="{style}" alt="{html.escape(latex)}" src="data:image/svg+xml;base64,{data}"/>'
    )


def draw_formulas(markdown: str) -> str:
    """Replace $…$ and $$…$$ outside code by images: a page that asks nobody for MathJax."""

    def one(match: re.Match[str]) -> str:
        code, display, inline = match.groups()
        return code or _formula(display or inline, bool(display))

    return CODE_OR_MATH.sub(one, markdown)


def notebook_html(path: Path) -> str:
    """An executed notebook as one self-contained HTML page that needs no script and no network."""
    nb = nbformat.read(path, as_version=4)
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = draw_formulas(cell["source"])
    exporter = HTMLExporter(raw_template=OFFLINE, embed_images=True)
    return exporter.from_notebook_node(nb, resources={"metadata": {"name": path.stem}})[0]


# --- index ----------------------------------------------------------------------------------------

INDEX = Path(__file__).with_name("report.html.j2")


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def _span(values: pd.Series) -> str:
    return " to ".join(f"{v:,.0f}" for v in dict.fromkeys((values.min(), values.max())))


def facts(profile: str) -> list[tuple[str, str]]:
    """What the results table says of the run's size: model, sites, SAEs, pages and tokens."""
    rows = _table(data_dir(profile) / "results.csv")
    if rows.empty:
        return []
    models = {MODEL_LABEL if m.startswith(EMBEDDED) else m for m in rows["model_id"]}
    return [
        ("model", ", ".join(sorted(models))),
        ("sites", ", ".join(map(str, sorted(rows["site"].unique())))),
        ("trained SAEs", str(len(rows))),
        ("training tokens an SAE", _span(rows["tokens_trained"])),
        ("test pages", _span(rows["n_test_pages"])),
        ("test tokens", _span(rows["n_test_tokens"])),
    ]


def stage_times(profile: str) -> list[tuple[str, int, float]]:
    """(stage, rows, summed seconds) of timings.csv, in order of first appearance, whole notebooks
    before parts.
    """
    rows = _table(data_dir(profile) / "timings.csv")
    if rows.empty:
        return []
    total = rows.groupby("stage", sort=False)["seconds"].agg(["size", "sum"])
    return sorted(total.itertuples(name=None), key=lambda row: not row[0].startswith("notebook:"))


def executed(profile: str) -> dict[str, Path]:
    """Page name -> executed notebook, grid points included; the failed copy of a notebook goes
    before an older one.
    """
    found = {}
    folder = data_dir(profile)
    for path in [
        *sorted(folder.glob("notebooks/*.ipynb")),
        *sorted(folder.glob("grid/*/notebooks/*.ipynb")),
    ]:
        name, _, state = path.stem.partition(".")
        grid = path.parts[-3] + "_" if path.parts[-4] == "grid" else ""
        if not state or state == "failed":
            found[f"{grid}{name}.html"] = path
    return found


def caption(verdict: Mapping[str, str]) -> str:
    """What a verdict says under its figure; the claim in quotation marks, since the verdict may be
    against it.
    """
    return f'{verdict["finding"]}, {verdict["verdict"]}: "{verdict["claim"]}" {verdict["effect"]}'


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of another: where filling fails the other stays
    as it is.
    """
    new = folder.with_name(f".{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    yield new
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


def _copy_figures(
    profile: str, verdicts: Sequence[Mapping[str, str]], folder: Path
) -> tuple[list, list, list]:
    """Copy the profile's figures; (name, caption) of those in the abstract and of others behind
    verdicts, the rest.
    """
    folder.mkdir(parents=True)
    wanted = [root() / v["figure"] for v in verdicts]
    for path in {*wanted, *(root() / "figures" / profile).glob("*.png")}:
        shutil.copyfile(path, folder / path.name)
    captions: dict[str, list[str]] = {}
    for v in verdicts:
        captions.setdefault(Path(v["figure"]).name, []).append(caption(v))
    by_finding = {v["finding"]: Path(v["figure"]).name for v in verdicts}
    key = list(dict.fromkeys(by_finding[f] for f in KEY_FINDINGS if f in by_finding))
    parts = (
        [(n, " ".join(captions[n])) for n in names]
        for names in (key, [n for n in captions if n not in key])
    )
    return *parts, sorted({p.name for p in folder.iterdir()} - set(captions))


def build_report(profile: str) -> Path:
    """Write `data/<profile>/report/`: a page a notebook, the figures, and index.html, whose path is
    returned.
    """
    notebooks, verdicts = executed(profile), read_verdicts(profile)
    if not notebooks:
        raise FileNotFoundError(
            f"no executed notebook under {data_dir(profile)}: run the profile first"
        )
    folder = data_dir(profile) / "report"
    context = {
        "profile": profile,
        "facts": facts(profile),
        "verdicts": verdicts,
        "findings": FINDINGS,
    }
    context |= {"abstract": read_abstract(profile), "stages": stage_times(profile)}
    context["failed"] = [
        p.removesuffix(".html") for p, path in notebooks.items() if ".failed" in path.name
    ]
    context["pages"] = [(p, p.removesuffix(".html")) for p in notebooks]
    with replaced(folder) as new:
        context["key"], context["figures"], context["more"] = _copy_figures(
            profile, verdicts, new / "figures"
        )
        for page, path in notebooks.items():
            write_text(new / page, notebook_html(path))
        index = jinja2.Environment(autoescape=True).from_string(INDEX.read_text(encoding="utf-8"))
        write_text(new / "index.html", index.render(context))
    return folder / "index.html"
