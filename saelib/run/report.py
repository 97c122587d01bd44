"""One folder to read or to mail: a first screen, the details behind it, a page per notebook.

    index.html      the question, the result in a sentence, and per finding its effect, its verdict
                    here and in the recorded run, and a figure that opens
    details.html    every claim with its rule and its numbers, all figures, the run's size and time
    NN_name.html    the executed notebooks (`page`)
    site_NN.html    the atlas of an SAE's features at each site, as notebook 06 wrote it
    figures/        copies of the profile's figures

Nothing in it asks the network for anything, and only an atlas has scripts. A notebook hands over
its findings with `finding.record`; the report only shows what was recorded.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd

from saelib.env import ATLAS, data_dir
from saelib.files import remove_leftovers_of_the_dead, replaced_folder, write_text
from saelib.run import headlines
from saelib.run.edited import absent_rows, edited_rows, unknown_rows
from saelib.run.headlines import interval_text
from saelib.run.jobs import intact_record
from saelib.run.page import Link, anchor, notebook_html
from saelib.run.plain import without_controls
from saelib.run.results import read_times
from saelib.run.seals import edited, edited_results, unsealed
from saelib.run.source_notebooks import require_valid
from saelib.run.turns import turn
from saelib.study.f3_features_atlas import atlas_file
from saelib.study.f3_features_findings import SIX_FEATURES
from saelib.study.finding import (
    MIN_PAGES,
    MIN_SEEDS,
    RECORDED,
    figure_file,
    load,
    read_abstracts,
    recorded_verdicts,
    replication,
)
from saelib.text.models import label_of

log = logging.getLogger("saelib")

TEMPLATE = Path(__file__).with_name("report.html.j2")
RESULTS = {  # what the report takes of the table
    **{"model_id": str, "site": int},
    **dict.fromkeys(("tokens_trained", "n_test_pages", "n_test_tokens"), float),
}
# The claim that stands for its finding where none has the finding's name.
LEADS = {"F3": "F3b", "F5": "F5e"}
FINDINGS = {  # as reported by the experiment the workbook reproduces
    "F0": "Not reported by the experiment: what has to be known before.",
    "F1": "A cosine learning rate with hard restarts trains badly.",
    "F2": "The Gated SAE is worse than the plain one, because neurons were not resampled.",
    "F3": "The layers near the input and in the middle train; the one near the output does not.",
    "F4": "Reconstruction follows the L1 coefficient.",
    "F5": "Not reported by the experiment: what other architectures change.",
}

# What a run left behind


def _table(path: Path, **dtypes: type) -> pd.DataFrame:
    """A table, empty where there is none.

    Raises ValueError naming the file where it is no table or lacks a column of `dtypes`.
    """
    if not path.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path).astype(dtypes)
        for name, kind in dtypes.items():
            if kind is str and table[name].isin(["", "nan"]).any() | table[name].isna().any():
                raise ValueError(f"{name} is empty")
    except (ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged ({reason}); delete it, or run its notebook") from error
    return table


def _results(profile: str) -> pd.DataFrame:
    """The table of results, empty where there is none; ValueError naming it where it is damaged."""
    return _table(data_dir(profile) / "results.csv", **RESULTS)


def _span(values: pd.Series) -> str:
    return " to ".join(f"{value:,.0f}" for value in dict.fromkeys((values.min(), values.max())))


def facts(profile: str) -> list[tuple[str, str]]:
    """What the results table says of the run's size: model, sites, SAEs, pages and tokens."""
    rows = _results(profile)
    if rows.empty:
        return []
    seeds = [("training seeds", str(rows["seed"].nunique()))] if "seed" in rows else []
    models = {label_of(name) or name for name in rows["model_id"]}
    return [
        ("model", ", ".join(sorted(models))),
        ("sites", ", ".join(map(str, sorted(rows["site"].unique())))),
        ("trained SAEs", str(len(rows))),
        *seeds,
        ("training tokens per SAE", _span(rows["tokens_trained"])),
        ("test pages", _span(rows["n_test_pages"])),
        ("test tokens", _span(rows["n_test_tokens"])),
    ]


def stage_times(profile: str) -> list[tuple[str, int, float]]:
    """(stage, rows, summed seconds) of timings.csv, whole notebooks before their parts."""
    rows = read_times(data_dir(profile))
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


def unreadable(notebooks: Mapping[str, Path]) -> dict[str, str]:
    """Page name -> what is wrong, of executed notebooks that are damaged."""
    lines = {}
    for page, path in notebooks.items():
        try:
            require_valid(path)
        except ValueError as error:
            lines[page] = f"{error}: it has no page; run {path.name.partition('.')[0]} again"
    return lines


def settings(notebooks: Mapping[str, Path]) -> list[tuple[str, str]]:
    """What was given by `--set`, beside the page of the notebook that it went to."""
    given = []
    for page, path in notebooks.items():
        record = path.with_name(path.name.partition(".")[0] + ".json")
        values = intact_record(record).get("settings", {})
        for name, value in values.items():
            given.append((page.removesuffix(".html"), f"{name} = {json.dumps(value)}"))
    return given


def figure_titles(notebooks: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Figure's file name -> its title and the name of the page of the notebook that drew it.

    `show.style.show` displays a figure with its title as `alt`, then prints where it lies.
    """
    titles = {}
    for page, path in notebooks.items():
        title = ""
        for output in _outputs(path):
            picture = output.get("metadata", {}).get("image/png")
            title = (isinstance(picture, Mapping) and picture.get("alt")) or title
            for name in re.findall(
                r"^\S*figures/(\S+\.png)$", output.get("text", ""), re.MULTILINE
            ):
                titles[name] = (title, page.removesuffix(".html"))
    return titles


def _outputs(path: Path) -> Iterator[Mapping[str, Any]]:
    for cell in nbformat.read(path, as_version=4)["cells"]:
        yield from cell.get("outputs", [])


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


def beside(leads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`leads` as the first page has them.

    effect      in one number, as README's table has it; empty where nothing was estimated
    judged_by   the claim whose verdict is shown, where it has another name than the finding
    others      verdict -> the other claims that have it
    recorded    (claim or "", verdict, what it means for the reported finding) of the recorded run
    """
    recorded = recorded_verdicts()
    return [{**lead, **_beside(lead, recorded)} for lead in leads]


def _beside(lead: Mapping[str, Any], recorded: Mapping[str, str]) -> dict[str, Any]:
    number, name = lead["number"], lead["name"]
    others: dict[str, list[str]] = {}
    for claim in lead["claims"]:
        if claim["name"] != name:
            others.setdefault(claim["verdict"], []).append(claim["name"])
    judging = [claim for claim in headlines.REPLICATING.get(number, [name]) if claim in recorded]
    return {
        "effect": headlines.effect(
            number, {c["name"]: c["estimates"] for c in lead["claims"]}, name
        ),
        "judged_by": "" if name == number else name,
        "others": others,
        "recorded": [
            (claim * (len(judging) > 1), recorded[claim], _replication(number, recorded[claim]))
            for claim in judging
        ],
    }


def _replication(number: str, verdict: str) -> str:
    """What a verdict means for a finding that the experiment reported; empty for our own."""
    if number in headlines.NOT_REPORTED or number not in FINDINGS or verdict == "undecided":
        return ""
    return replication(verdict)


def summary(
    findings: Sequence[Mapping[str, Any]], size: Mapping[str, str], undecided: str = ""
) -> list[str]:
    """The report's two paragraphs: the question; the result and on what it rests.

    undecided: why claims are, `undecided_reason`.
    """
    question = (
        "Can a sparse dictionary rebuild what a language model represents at a depth, how sparsely,"
        " and if not, why not: these notebooks repeat an early experiment (Park, 2024) and test"
        " its four findings."
    )
    basis = "Every number was computed in the notebook it is linked to, on held-out pages"
    if size:
        basis += f" ({size['model']}; {size['test pages']} test pages)"
    result = [verdict_counts(findings), undecided, agreement(findings), f"{basis}."]
    return [question, " ".join(filter(None, result))]


def verdict_counts(findings: Sequence[Mapping[str, Any]]) -> str:
    """The result in one sentence: how many claims got which verdict."""
    if not findings:
        return "No claim has been judged yet."
    counts = Counter(finding["verdict"] for finding in findings)
    words = [f"{counts[v]} {v}" for v in ("supported", "contradicted", "undecided") if counts[v]]
    n_claims = f"{len(findings)} claim{'s' * (len(findings) != 1)}"
    return f"Of {n_claims} judged here: {', '.join(words)}."


def undecided_reason(profile: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """Why claims are undecided: too few seeds or test pages, else their rules; empty if none is."""
    if not any(finding["verdict"] == "undecided" for finding in findings):
        return ""
    rows = _results(profile)
    lacking = []
    if "seed" in rows and rows["seed"].nunique() < MIN_SEEDS:
        lacking.append(_lacking("training seeds", MIN_SEEDS, rows["seed"].nunique()))
    if len(rows) and rows["n_test_pages"].min() < MIN_PAGES:
        lacking.append(_lacking("test pages", MIN_PAGES, int(rows["n_test_pages"].min())))
    if lacking:
        return f"Undecided because {' and '.join(lacking)}."
    return "What leaves a claim undecided stands in its rule, in the details."


def _lacking(things: str, needed: int, n: int) -> str:
    return f"a verdict needs {needed} {things} and this run has {n}"


def agreement(findings: Sequence[Mapping[str, Any]]) -> str:
    """How many effects agree with the recorded run's, and whose differ; empty without a record."""
    words = {finding["name"]: _agreement(finding) for finding in findings}
    differing = [name for name, word in words.items() if word == "differs"]
    agreeing = [name for name, word in words.items() if word == "agrees"]
    n_compared = len(agreeing) + len(differing)
    if not n_compared:
        return ""
    text = (
        f"Of {n_compared} effects compared with the recorded run {RECORDED}, {len(agreeing)} agree"
    )
    return f"{text}; those of {', '.join(differing)} differ." if differing else f"{text}."


def _agreement(finding: Mapping[str, Any]) -> str:
    """ "agrees" or "differs": the first effect beside the recorded run's, by interval; or ""."""
    match = re.search(r": (agrees|differs)$", finding["beside_recorded"])
    return match[1] if match else ""


def _copy_figures(profile: str, findings: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Copy the profile's figures; return the names of those behind no finding."""
    folder.mkdir(parents=True)
    wanted = {figure_file(finding["figure"]) for finding in findings}
    for path in wanted | set((data_dir(profile) / "figures").glob("*.png")):
        shutil.copyfile(path, folder / path.name)
    return sorted({path.name for path in folder.iterdir()} - {path.name for path in wanted})


def atlases(profile: str) -> list[Path]:
    """The atlases that notebook 06 wrote, by site; what else lies there is passed over."""
    paths = sorted((data_dir(profile) / ATLAS).glob("*.html"))
    return [path for path in paths if re.fullmatch(r"site_\d+", path.stem)]


def six_features(profile: str) -> list[dict[str, Any]]:
    """The latents that notebook 06 chose, with the atlas of their site; empty without it."""
    rows = _table(data_dir(profile) / "diagnostics" / f"{SIX_FEATURES}.csv", site=int)
    pages = {path.name for path in atlases(profile)}
    entries = rows.fillna("").to_dict("records")
    for entry in entries:
        page = atlas_file(int(entry["site"]))
        entry["page"] = page if page in pages else ""
    return entries


def build_report(profile: str) -> Path:
    """Write `data/<profile>/report/` anew and return the path of its index.html.

    What was edited since the notebooks left it, or is damaged, is told in it and in the log.

    Raises:
        FileNotFoundError: the profile has no executed notebook.
        ValueError: a file of findings is damaged; names it.
    """
    with turn(data_dir(profile), "report"):
        remove_leftovers_of_the_dead(data_dir(profile))  # a killed report's, among others
        return _build(profile)


def _build(profile: str) -> Path:
    notebooks = executed(profile)
    if not notebooks:
        raise FileNotFoundError(
            f"no executed notebook under {data_dir(profile)}: run the profile first"
        )
    damaged = unreadable(notebooks)
    notebooks = {page: path for page, path in notebooks.items() if page not in damaged}
    notices = [line.replace(f"{data_dir(profile)}/", "") for line in damaged.values()]
    faults = [*edited_results(profile), *edited(profile)]
    faults += [*_edited_results(profile), *_unrecorded(notebooks.values())]
    notices += [line.replace(f"{data_dir(profile)}/", "") for line in faults]
    for notice in notices:
        log.warning("%s", notice)
    findings = load(profile)
    size = facts(profile)
    undecided = undecided_reason(profile, findings)
    names = {page: page.removesuffix(".html") for page in notebooks}
    context = {
        "profile": profile,
        "facts": size,
        "summary": summary(findings, dict(size), undecided),
        "undecided": undecided,
        "leads": beside(lead_findings(findings)),
        "recorded_profile": RECORDED,
        "findings": findings,
        "reported": FINDINGS,
        "abstract": read_abstracts(profile),
        "stages": stage_times(profile),
        "settings": settings(notebooks),
        "notices": notices,
        "unsealed": unsealed(profile),
        "failed": [names[page] for page, path in notebooks.items() if ".failed" in path.name],
        "pages": list(names.items()),
        "page_names": list(names.values()),
        "atlases": [(path.name, f"features, {_words(path.stem)}") for path in atlases(profile)],
        "features": six_features(profile),
    }
    folder = data_dir(profile) / "report"
    with replaced_folder(folder) as new:
        titles = figure_titles(notebooks)
        more = _copy_figures(profile, findings, new / "figures")
        for path in atlases(profile):
            shutil.copyfile(path, new / path.name)
        context["more"] = [(name, *titles.get(name, ("", ""))) for name in more]
        for (page, path), around in zip(
            notebooks.items(), _neighbours(list(names.items())), strict=True
        ):
            write_text(new / page, notebook_html(path, *around))
        for page in ("index", "details"):
            write_text(new / f"{page}.html", _render(context | {"page": page}))
    return folder / "index.html"


def _unrecorded(notebooks: Iterable[Path]) -> Iterator[str]:
    """Executed notebooks without the record that seals what they left, each in a sentence."""
    for path in notebooks:
        record = path.with_name(path.name.partition(".")[0] + ".json")
        if not record.is_file() and ".failed" not in path.name:
            yield f"{record} is missing: what {path.stem} left is not checked"


def _edited_results(profile: str) -> list[str]:
    """Rows of the results that their runs' folders deny, each in a sentence."""
    path = data_dir(profile) / "results.csv"
    lines = [*edited_rows(path), unknown_rows(path)] if path.is_file() else []
    return list(filter(None, [*lines, absent_rows(path)]))


def _words(stem: str) -> str:
    """ "site 2" of "site_02"."""
    name, _, number = stem.partition("_")
    return f"{name} {int(number)}"


def _neighbours(pages: Sequence[Link]) -> Iterator[tuple[Link | None, Link | None]]:
    """Of each page the one before and the one after it."""
    if not pages:  # all notebooks are damaged
        return iter(())
    return zip([None, *pages[:-1]], [*pages[1:], None], strict=True)


def _render(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_plain
    )
    environment.filters.update(anchor=anchor, interval=interval_text, file=lambda p: Path(p).name)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context)


def _plain(value: Any) -> Any:
    """A value as the report may show it: the title of a page may hold control sequences."""
    return without_controls(value) if type(value) is str else value
