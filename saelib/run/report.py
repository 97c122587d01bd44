"""One folder to read or to mail: a first screen, the details behind it, a page per notebook.

    index.html      three sentences, and per finding a verdict and a figure
    details.html    every claim with its rule and its numbers, all figures, the run's size and time
    NN_name.html    the executed notebooks (`page`)
    figures/        copies of the profile's figures

Nothing in it asks the network for anything, and there are no scripts. A notebook hands over its
findings with `finding.record`; the report only shows what was recorded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from saelib.env import data_dir
from saelib.files import read_json, replaced_folder, write_text
from saelib.run.page import anchor, notebook_html
from saelib.study.finding import figure_file, load, read_abstract
from saelib.text.assets import EMBEDDED, MODEL_LABEL

TEMPLATE = Path(__file__).with_name("report.html.j2")
LEADS = {"F3": "F3b"}  # the claim that stands for its finding where none has the finding's name
FINDINGS = {  # as reported by the experiment the workbook reproduces
    "F0": "Not reported by the experiment: what has to be known before.",
    "F1": "A cosine learning rate with hard restarts trains badly.",
    "F2": "The Gated SAE is worse than the plain one, because neurons were not resampled.",
    "F3": "The layers near the input and in the middle train; the one near the output does not.",
    "F4": "Reconstruction follows the L1 coefficient.",
}

# What a run left behind


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def _span(values: pd.Series) -> str:
    return " to ".join(f"{value:,.0f}" for value in dict.fromkeys((values.min(), values.max())))


def facts(profile: str) -> list[tuple[str, str]]:
    """What the results table says of the run's size: model, sites, SAEs, pages and tokens."""
    rows = _table(data_dir(profile) / "results.csv")
    if rows.empty:
        return []
    models = {MODEL_LABEL if name.startswith(EMBEDDED) else name for name in rows["model_id"]}
    return [
        ("model", ", ".join(sorted(models))),
        ("sites", ", ".join(map(str, sorted(rows["site"].unique())))),
        ("trained SAEs", str(len(rows))),
        ("training tokens per SAE", _span(rows["tokens_trained"])),
        ("test pages", _span(rows["n_test_pages"])),
        ("test tokens", _span(rows["n_test_tokens"])),
    ]


def stage_times(profile: str) -> list[tuple[str, int, float]]:
    """(stage, rows, summed seconds) of timings.csv, whole notebooks before their parts."""
    rows = _table(data_dir(profile) / "timings.csv")
    if rows.empty:
        return []
    total = rows.groupby("stage", sort=False)["seconds"].agg(["size", "sum"])
    return sorted(total.itertuples(name=None), key=lambda row: not row[0].startswith("notebook:"))


def executed(profile: str) -> dict[str, Path]:
    """Page name -> executed notebook, grid points included.

    The failed copy of a notebook goes before an older one.
    """
    folder = data_dir(profile)
    paths = sorted(folder.glob("notebooks/*.ipynb"))
    paths += sorted(folder.glob("grid/*/notebooks/*.ipynb"))
    pages = {}
    for path in paths:
        name, _, state = path.stem.partition(".")
        grid = path.parts[-3] + "_" if path.parts[-4] == "grid" else ""
        if not state or state == "failed":
            pages[f"{grid}{name}.html"] = path
    return pages


def settings(notebooks: Mapping[str, Path]) -> list[tuple[str, str]]:
    """What was given by `--set`, beside the page of the notebook that it went to."""
    given = []
    for page, path in notebooks.items():
        record = path.with_name(path.name.partition(".")[0] + ".json")
        values = read_json(record).get("settings", {}) if record.is_file() else {}
        for name, value in values.items():
            given.append((page.removesuffix(".html"), f"{name} = {json.dumps(value)}"))
    return given


# What the report shows


def lead_findings(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per finding (F0, F1, …) the claim that stands for it, with all its claims as `claims`."""
    by_number: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        number = re.match(r"F\d+", finding["name"])[0]
        by_number.setdefault(number, []).append(finding)
    leads = []
    for number, claims in by_number.items():
        named = [claim for claim in claims if claim["name"] in (number, LEADS.get(number))]
        leads.append({**(named or claims)[0], "number": number, "claims": claims})
    return leads


def summary(findings: Sequence[Mapping[str, Any]], size: Mapping[str, str]) -> list[str]:
    """The report's three sentences: the question, the verdicts, on what they rest."""
    question = (
        "Can a sparse dictionary rebuild what a language model represents at a depth, how sparsely,"
        " and if not, why not: these notebooks repeat an early experiment (Park, 2024) and test"
        " its four findings."
    )
    counts = Counter(finding["verdict"] for finding in findings)
    words = [f"{counts[v]} {v}" for v in ("supported", "contradicted", "undecided") if counts[v]]
    n_claims = f"{len(findings)} claim{'s' * (len(findings) != 1)}"
    verdicts = f"Of {n_claims} judged here: {', '.join(words)}."
    if not findings:
        verdicts = "No claim has been judged yet."
    basis = "Every number was computed in the notebook it is linked to, on held-out pages"
    if size:
        basis += f" ({size['model']}; {size['test pages']} test pages)"
    return [question, verdicts, f"{basis}."]


def interval_text(row: Mapping[str, float | None]) -> str:
    """ "1.33 [1.29, 1.38]", or words where a value is undefined."""
    if row["value"] is None:
        return "undefined"
    if row["lo"] is None or row["hi"] is None:
        return f"{row['value']:.3g} (no interval)"
    return f"{row['value']:.3g} [{row['lo']:.3g}, {row['hi']:.3g}]"


def _copy_figures(profile: str, findings: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Copy the profile's figures; return the names of those behind no finding."""
    folder.mkdir(parents=True)
    wanted = {figure_file(finding["figure"]) for finding in findings}
    for path in wanted | set((data_dir(profile) / "figures").glob("*.png")):
        shutil.copyfile(path, folder / path.name)
    return sorted({path.name for path in folder.iterdir()} - {path.name for path in wanted})


def build_report(profile: str) -> Path:
    """Write `data/<profile>/report/` anew and return the path of its index.html.

    Raises:
        FileNotFoundError: the profile has no executed notebook.
    """
    notebooks = executed(profile)
    if not notebooks:
        raise FileNotFoundError(
            f"no executed notebook under {data_dir(profile)}: run the profile first"
        )
    findings = load(profile)
    size = facts(profile)
    names = {page: page.removesuffix(".html") for page in notebooks}
    context = {
        "profile": profile,
        "facts": size,
        "summary": summary(findings, dict(size)),
        "leads": lead_findings(findings),
        "findings": findings,
        "reported": FINDINGS,
        "abstract": read_abstract(profile),
        "stages": stage_times(profile),
        "settings": settings(notebooks),
        "failed": [names[page] for page, path in notebooks.items() if ".failed" in path.name],
        "pages": list(names.items()),
    }
    folder = data_dir(profile) / "report"
    with replaced_folder(folder) as new:
        context["more"] = _copy_figures(profile, findings, new / "figures")
        for page, path in notebooks.items():
            write_text(new / page, notebook_html(path))
        for page in ("index", "details"):
            write_text(new / f"{page}.html", _render(context | {"page": page}))
    return folder / "index.html"


def _render(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(anchor=anchor, interval=interval_text, file=lambda p: Path(p).name)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context)
