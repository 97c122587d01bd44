"""The report shows what was recorded, and needs neither network nor scripts."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers.toy_workbook import write_notebook, write_profile
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saelib.files import temporary_name, write_text
from saelib.run import report, seals
from saelib.run.jobs import jobs_of, write_record
from saelib.run.page import draw_formulas
from saelib.run.results import log_time, results_text
from saelib.run.seals import seals_of
from saelib.seal import replace_sealed
from saelib.study.estimate import Estimate
from saelib.study.finding import Finding, record_abstract, record_table
from saelib.study.finding import record as record_findings
from saelib.text.models import EMBEDDED, MODELS

TEXT = (
    "# Claim\n\nThe loss $L = \\Vert x - \\hat{x}\\Vert^2$; it costs $5 or $6. "
    "Code `$a$`, unknown $\\nosuch{x}$."
)


@pytest.fixture
def figure(home: Path) -> str:
    """A real PNG of a run of profile smoke."""
    folder = home / "data" / "smoke" / "figures"
    folder.mkdir(parents=True)
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    for name in ("curve", "other"):
        fig.savefig(folder / f"{name}.png")
    plt.close(fig)
    return "data/smoke/figures/curve.png"


def write_executed(home: Path, name: str = "02_x") -> Path:
    """An executed notebook with a formula, an image, a table and a widget's output."""
    widget = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "a1"},
        "text/plain": "IntSlider(value=0)",
    }
    outputs = [
        new_output("display_data", {"text/html": "<b>bold</b>"}),
        new_output("display_data", widget),
    ]
    cells = [new_markdown_cell(TEXT), new_code_cell("1 < 2", outputs=outputs, execution_count=1)]
    path = home / "data" / "smoke" / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"widgets": {}}), path)
    return path


def test_formulas_become_images_and_code_prices_and_unknown_commands_stay_text():
    drawn = draw_formulas(TEXT + "\n\n$$a + b$$\n\n```\n$c$\n```")
    assert drawn.count("data:image/svg+xml;base64,") == 2
    assert "display:block" in drawn
    for kept in ("$5 or $6", "`$a$`", "```\n$c$\n```", "<code>\\nosuch{x}</code>"):
        assert kept in drawn


def test_a_notebook_page_asks_nothing_of_the_network_and_runs_no_script(home):
    page = report.notebook_html(write_executed(home))
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert not re.findall(r"url\((?!data:|['\"]?data:)[^)]*//", page)
    assert "<b>bold</b>" in page
    assert "IntSlider(value=0)" in page


def finding(name: str, figure: str, **changes: object) -> Finding:
    """A finding in today's form, with one estimate."""
    base = {
        "name": name,
        "claim": "FVU falls & L0 rises",
        "rule": "Supported below 1.",
        "verdict": "supported",
        "estimates": {"site 2": Estimate(np.array([0.3, 0.2, 0.4, 0.3]))},
        "sentence": "It is 0.3 <nats>.",
        "section": "How we know",
        "figure": figure,
    }
    return Finding(**(base | changes))


def local_targets(page: str) -> set[str]:
    """Files that a page of the report points to."""
    targets = re.findall(r'(?:src|href)="([^"#]+)', page)
    return {target for target in targets if not target.startswith("data:")}


def test_details_show_claims_numbers_size_failures_and_times_escaped(home, figure):
    write_executed(home)
    write_executed(home, "03_z").rename(home / "data" / "smoke" / "notebooks" / "03_z.failed.ipynb")
    grid = home / "data" / "smoke" / "grid" / "abc" / "notebooks"
    grid.mkdir(parents=True)
    write_executed(home, "04_g").rename(grid / "04_g.ipynb")
    record_findings("smoke", "02_x", [finding("F4", figure)])
    header = "run_id,model_id,site,tokens_trained,n_test_pages,n_test_tokens"
    table = f"{header}\nr1,m,15,1000,21,5000\nr2,m,2,2000,21,5000\n"
    (home / "data" / "smoke" / "results.csv").write_text(table)
    times = (
        "run_id,stage,seconds,tokens_per_second,resumed\n"
        ",train,2.5,,false\n,train,1.0,,true\n,notebook:02_x,4.0,,\n"
    )
    (home / "data" / "smoke" / "timings.csv").write_text(times)
    index = report.build_report("smoke")
    page = index.with_name("details.html").read_text()
    assert "FVU falls &amp; L0 rises" in page
    assert "It is 0.3 &lt;nats&gt;." in page
    for text in ("1,000 to 2,000", "21", "5,000", "03_z failed", "train</td>\n<td>2</td><td>3.5"):
        assert text in page
    whole = page.index("<td>notebook:02_x</td>")
    assert whole < page.index('<td class="within">train</td>')  # not beside it
    assert "<figcaption>F4, supported: “FVU falls &amp; L0 rises”</figcaption>" in page
    assert 'href="02_x.html#How-we-know"' in page
    assert {"figures/curve.png", "figures/other.png", "02_x.html"} <= local_targets(page)
    first = index.read_text()
    assert {"02_x.html", "03_z.html", "abc_04_g.html", "details.html"} <= local_targets(first)
    assert "03_z failed" in first
    for text in (page, first):  # the folder is whole: it can be mailed
        assert all((index.parent / target).is_file() for target in local_targets(text))
        assert "<script" not in text


def write_results(home: Path, n_seeds: int, n_pages: int) -> None:
    """A results table of `n_seeds` SAEs, each of its own seed."""
    header = "run_id,model_id,site,seed,tokens_trained,n_test_pages,n_test_tokens"
    rows = [f"r{seed},m,2,{seed},1000,{n_pages},5000" for seed in range(n_seeds)]
    path = home / "data" / "smoke" / "results.csv"
    path.write_text("\n".join([header, *rows, ""]))


UNDECIDED = [
    (1, 22, "Undecided because a verdict needs 3 training seeds and this run has 1."),
    (3, 4, "Undecided because a verdict needs 15 test pages and this run has 4."),
    (2, 14, "needs 3 training seeds and this run has 2 and a verdict needs 15 test pages and"),
    (3, 15, "What leaves a claim undecided stands in its rule, in the details."),
]


@pytest.mark.parametrize(("n_seeds", "n_pages", "reason"), UNDECIDED)
def test_why_claims_are_undecided_is_said_once_by_the_run_s_size(
    home, figure, n_seeds, n_pages, reason
):
    write_executed(home)
    write_results(home, n_seeds, n_pages)
    others = [finding("F1", figure, verdict="undecided"), finding("F2", figure)]
    record_findings("smoke", "02_x", [finding("F4", figure, verdict="undecided"), *others])
    index = report.build_report("smoke")
    for page in (index, index.with_name("details.html")):
        assert page.read_text().count(reason) == 1


def test_nothing_undecided_needs_no_reason(home, figure):
    write_executed(home)
    write_results(home, 1, 4)
    record_findings("smoke", "02_x", [finding("F4", figure)])
    assert "ndecided" not in re.sub(r"<style>.*?</style>", "", built_index(), flags=re.DOTALL)


def built_index() -> str:
    return report.build_report("smoke").read_text()


def write_recorded(home: Path, verdicts: dict[str, str]) -> None:
    """What the recorded run keeps: verdicts in the older form, and F4's estimate."""
    folder = home / "data" / "recorded" / "full"
    (folder / "verdicts").mkdir(parents=True)
    entries = [{"finding": name, "verdict": verdict} for name, verdict in verdicts.items()]
    (folder / "verdicts" / "02_x.json").write_text(json.dumps(entries))
    rows = {"F4": {"site 2": {"value": 0.3, "lo": 0.2, "hi": 0.4}}}
    rows["F1"] = {"site 2": {"value": 3.0, "lo": 2.9, "hi": 3.1}}
    (folder / "estimates.json").write_text(json.dumps(rows))


def test_a_card_has_effect_verdict_and_the_recorded_run_s_verdict_in_that_order(home, figure):
    write_executed(home)
    recorded = {"F0": "does not replicate", "F3b": "replicates", "F3c": "does not replicate"}
    write_recorded(home, {**recorded, "F4": "replicates", "F1": "cannot tell"})
    power = {"site 2, power of λ": Estimate(np.array([0.3, 0.2, 0.4, 0.3]))}
    four = finding("F4", figure, verdict="undecided", estimates=power)
    names = ["F0", "F1", "F3b", "F3c"]
    record_findings("smoke", "02_x", [four, *(finding(name, figure) for name in names)])
    cards = dict(re.findall(r'class="card" id="(F\d)">(.*?)</section>', built_index(), re.DOTALL))
    text = {name: " ".join(re.sub(r"<[^>]+>", "", card).split()) for name, card in cards.items()}
    assert re.search(r"λ to the power 0\.3 \[.*\] undecided supported \(replicates\)", text["F4"])
    assert "supported contradicted F0" in text["F0"]  # ours: nothing to replicate
    assert "supported undecided F1" in text["F1"]
    assert text["F3"].startswith("F3 The layers near the input")  # not "F3b"
    both = "F3b supported (replicates); F3c contradicted (does not replicate)"
    assert f"supported by F3b {both}" in text["F3"]


def test_effects_that_differ_from_the_recorded_run_s_are_named(home, figure):
    write_executed(home)
    write_recorded(home, {})
    record_findings("smoke", "02_x", [finding("F4", figure), finding("F1", figure)])
    said = "Of 2 effects compared with the recorded run full, 1 agree; those of F1 differ."
    assert said in built_index()


def test_one_figure_is_open_and_another_opens_by_its_link(home, figure):
    write_executed(home)
    record_findings("smoke", "02_x", [finding("F1", figure), finding("F4", figure)])
    page = built_index()
    assert page.count('<details name="finding" open>') == 1
    assert page.count('<details name="finding">') == 1
    for name in ("F1", "F4"):
        assert f'href="#{name}-figure"' in page
        assert f'id="{name}-figure"' in page


def test_further_figures_have_their_title_and_notebook_as_caption(home, figure):
    path = write_executed(home)
    notebook = nbformat.read(path, as_version=4)
    metadata = {"image/png": {"alt": "A & B", "width": 9}}
    picture = new_output("display_data", {"image/png": "aGk="}, metadata=metadata)
    line = new_output("stream", name="stdout", text="data/smoke/figures/other.png\n")
    notebook.cells.append(new_code_cell("show()", outputs=[picture, line]))
    nbformat.write(notebook, path)
    record_findings("smoke", "02_x", [finding("F4", figure)])
    page = report.build_report("smoke").with_name("details.html").read_text()
    caption = '<figcaption>A &amp; B (<a href="02_x.html">02_x</a>)</figcaption>'
    assert f'<img src="figures/other.png" alt="A &amp; B">\n{caption}' in page


def test_a_figure_names_the_page_of_the_notebook_that_drew_it_also_at_a_grid_point(tmp_path):
    notebook = nbformat.v4.new_notebook()
    picture = new_output("display_data", {"image/png": "aGk="}, metadata={})
    line = new_output("stream", name="stdout", text="data/smoke/figures/other.png\n")
    notebook.cells.append(new_code_cell("show()", outputs=[picture, line]))
    path = tmp_path / "grid" / "abc" / "notebooks" / "04_g.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    assert report.figure_titles({"abc_04_g.html": path}) == {"other.png": ("", "abc_04_g")}


def test_a_notebook_page_leads_to_the_pages_beside_it(home):
    for name in ("01_a", "02_x", "03_z"):
        write_executed(home, name)
    index = report.build_report("smoke")
    beside = {
        name: re.findall(r'rel="(prev|next)" href="([^"]+)"', index.with_name(name).read_text())
        for name in ("01_a.html", "02_x.html", "03_z.html")
    }
    assert beside == {
        "01_a.html": [("next", "02_x.html")],
        "02_x.html": [("prev", "01_a.html"), ("next", "03_z.html")],
        "03_z.html": [("prev", "02_x.html")],
    }


def test_equal_runs_give_equal_reports(home, figure):
    write_executed(home)
    record_findings("smoke", "02_x", [finding("F4", figure)])
    folder = report.build_report("smoke").parent
    first = {path.name: path.read_bytes() for path in folder.glob("*.html")}
    report.build_report("smoke")
    assert first == {path.name: path.read_bytes() for path in folder.glob("*.html")}


def test_wide_things_scroll_in_their_own_box_and_words_stay_whole(home, figure):
    path = write_executed(home)
    assert '<span class="wide"><img' in draw_formulas("$$a + b$$")
    record_findings("smoke", "02_x", [finding("F4", figure)])
    style = report.notebook_html(path)
    assert "overflow-wrap: anywhere" not in style + built_index()
    assert ".wide { overflow-x: auto" in style
    assert ".wide { overflow-x: auto" in built_index()
    assert "word-break: normal; overflow-wrap: normal; overflow-x: auto" in style


def test_the_first_screen_has_the_result_and_one_card_per_finding(home, figure):
    write_executed(home)
    other = "data/smoke/figures/other.png"
    findings = [finding("F3a", figure), finding("F3b", other, verdict="undecided")]
    record_findings("smoke", "02_x", [*findings, finding("F1", figure, verdict="contradicted")])
    page = report.build_report("smoke").read_text()
    assert "Of 3 claims judged here: 1 supported, 1 contradicted, 1 undecided." in page
    cards = re.findall(r'class="card" id="(F\d)".*?</section>', page, re.DOTALL)
    assert cards == ["F1", "F3"]
    third = page[page.index('id="F3"') :]
    assert 'src="figures/other.png"' in third  # F3b leads F3
    assert '<a href="details.html#F3a">F3a</a> supported' in third
    assert page.count("<img") == 2


def test_details_give_each_claim_s_rule_estimates_and_comparison(home, figure):
    write_executed(home)
    record_findings("smoke", "02_x", [finding("F4", figure)])
    page = report.build_report("smoke").with_name("details.html").read_text()
    assert "Supported below 1." in page
    assert re.search(r"<td>site 2</td><td>0\.3 \[0\.\d+, 0\.\d+\]</td>", page)
    assert "It is 0.3 &lt;nats&gt;." in page
    assert "no record" in page


def test_an_undefined_estimate_is_said_in_words():
    assert report.interval_text({"value": None, "lo": None, "hi": None}) == "undefined"
    one_seed = {"value": 0.5, "lo": None, "hi": None}
    assert report.interval_text(one_seed) == "0.5 (no interval)"


def test_settings_given_by_set_are_shown_beside_their_notebook(home, figure):
    path = write_executed(home)
    path.with_suffix(".json").write_text(json.dumps({"key": "k", "settings": {"lr": 0.001}}))
    index = report.build_report("smoke")
    for page in (index, index.with_name("details.html")):
        assert "<code>lr = 0.001</code>" in page.read_text()


def test_a_notebook_page_folds_its_code_and_leads_back_and_to_its_headings(home):
    page = report.notebook_html(write_executed(home))
    assert page.count('<details class="code">') == 1
    code = page[page.index('<details class="code">') :]
    assert code.index("jp-InputArea") < code.index("</details>") < code.index("<b>bold</b>")
    assert '<a href="index.html">← report</a>' in page
    assert '<a class="h1" href="#Claim">Claim</a>' in page
    assert 'id="Claim"' in page


def test_the_abstract_is_what_the_notebooks_say_in_order_above_the_claims(home, figure):
    write_executed(home)
    record_abstract("smoke", "03_z", "Third & last.\n")
    record_abstract("smoke", "02_x", "The second says 0.3.")
    record_findings("smoke", "02_x", [finding("F4", figure)])
    page = report.build_report("smoke").with_name("details.html").read_text()
    second = page.index('<a href="02_x.html">02_x</a></dt><dd>The second says 0.3.</dd>')
    third = page.index("<dt>03_z</dt><dd>Third &amp; last.</dd>")  # its page is gone
    assert second < third < page.index('<article id="F4">')


def test_the_embedded_model_goes_by_its_label_and_sites_by_their_number(home):
    (home / "data" / "smoke").mkdir(parents=True)
    embedded = MODELS[EMBEDDED]
    rows = [f"{embedded.folder}@0123,{site},9,9,9" for site in (15, 2, 29)]
    rows.append("other@4567,2,9,9,9")
    columns = "model_id,site,tokens_trained,n_test_pages,n_test_tokens"
    (home / "data" / "smoke" / "results.csv").write_text("\n".join([columns, *rows, ""]))
    facts = dict(report.facts("smoke"))
    assert facts["model"] == f"{embedded.label}, other@4567"
    assert facts["sites"] == "2, 15, 29"


def test_building_again_replaces_the_report_and_nothing_to_report_is_an_error(home, figure):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        report.build_report("smoke")
    path = write_executed(home)
    report.build_report("smoke")
    path.rename(path.with_name("05_w.ipynb"))
    report.build_report("smoke")
    assert sorted(p.name for p in (home / "data" / "smoke" / "report").glob("*.html")) == [
        "05_w.html",
        "details.html",
        "index.html",
    ]
    assert not (home / "data" / "smoke" / ".report").exists()


def test_six_latents_stand_on_the_first_page_and_lead_to_the_atlas_of_their_site(home):
    write_executed(home)
    folder = home / "data" / "smoke"
    (folder / "diagnostics").mkdir()
    (folder / "diagnostics" / "06_six_features.csv").write_text(
        "site,latent,description,before,peak,after\n"
        "2,7,fires on ‘<b>’,In ,<script>,of\n"
        "15,9,fires on ‘x’,a,b,c\n"
    )
    (folder / "atlas").mkdir()
    (folder / "atlas" / "site_02.html").write_text("an atlas")
    index = report.build_report("smoke").read_text(encoding="utf-8")
    assert '<a href="site_02.html#latent=7">site 2, latent 7</a>' in index
    assert "<mark>&lt;script&gt;</mark>" in index
    assert "site_15.html" not in index
    assert '<a href="site_02.html">features, site 2</a>' in index
    assert (folder / "report" / "site_02.html").read_text() == "an atlas"


def sealed_run(home: Path, figure: str) -> Path:
    """A profile whose notebook 02_x has finished: findings, abstract, table, times, its record."""
    write_notebook(home, "02_x", code="1 < 2")
    write_executed(home)
    write_profile(home, "")
    record_findings("smoke", "02_x", [finding("F4", figure)])
    record_abstract("smoke", "02_x", "It is 0.3.")
    record_table("smoke", "02_table", pd.DataFrame({"fvu": [0.25, 0.5]}))
    log_time(home / "data" / "smoke", "train", 2.5)
    (job,) = jobs_of("smoke")
    write_record(job, "key", seals_of(job))
    return home / "data" / "smoke"


LEFT = [
    "verdicts/02_x.json",
    "verdicts/02_x.txt",
    "diagnostics/02_table.csv",
    "timings.csv",
    "notebooks/02_x.ipynb",
]


@pytest.mark.parametrize("name", LEFT)
def test_a_digit_that_was_changed_after_the_run_is_told_with_the_file(
    home, figure, name, monkeypatch, caplog
):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    folder = sealed_run(home, figure)
    report.build_report("smoke")
    assert caplog.text == ""
    log_time(folder, "train", 1.5)  # more work is no edit
    whole = (folder / name).read_bytes()
    edit = re.sub(rb"0\.3|0\.25|2\.5|1 < 2", lambda m: m[0][:-1] + b"9", whole, count=1)
    assert edit != whole
    (folder / name).write_bytes(edit)
    index = report.build_report("smoke")
    line = f"{name} was edited after 02_x had finished; run 02_x with --force to make it anew"
    assert line in caplog.text
    for page in (index, index.with_name("details.html")):
        assert line in page.read_text()
    (folder / name).write_bytes(whole)
    assert "was edited" not in built_index()


def _of_first_code(name: str, value: object) -> Callable[[dict], None]:
    def edit(notebook: dict) -> None:
        next(c for c in notebook["cells"] if c["cell_type"] == "code")[name] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _of_first_code("id", "another"),
        _of_first_code("execution_count", 7),
        _of_first_code("metadata", {"a": 1}),
        lambda notebook: notebook["metadata"].update(a=1),
        lambda notebook: notebook["cells"].reverse(),
        lambda notebook: notebook["cells"][0].update(source="other"),
        lambda notebook: [cell.pop("outputs", None) for cell in notebook["cells"]],
    ],
)
def test_whatever_was_changed_in_an_executed_notebook_is_told(
    home, figure, monkeypatch, caplog, edit
):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    path = sealed_run(home, figure) / "notebooks" / "02_x.ipynb"
    notebook = json.loads(path.read_text())
    edit(notebook)
    path.write_text(json.dumps(notebook))
    with suppress(ValueError):  # some are no notebook any more
        report.build_report("smoke")
    assert "notebooks/02_x.ipynb was edited after 02_x had finished" in caplog.text


def test_a_notebook_that_an_earlier_version_sealed_is_whole(home, figure, monkeypatch, caplog):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    sealed_run(home, figure)
    (job,) = jobs_of("smoke")
    parts = seals._parts(job.output)
    for earlier in (parts["cells"], {"cells": parts["cells"], "prose": parts["prose"]}):
        write_record(job, "key", seals_of(job) | {"notebooks/02_x.ipynb": earlier})
        report.build_report("smoke")
        assert caplog.text == ""


@pytest.mark.parametrize("content", [b"It is \xff.", b"\x89"])
def test_an_abstract_that_is_no_text_is_named(home, figure, monkeypatch, content):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    path = sealed_run(home, figure) / "verdicts" / "02_x.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"verdicts/02_x\.txt: damaged .*run notebook 02 again"):
        report.build_report("smoke")


def test_an_atlas_and_the_results_that_were_edited_are_told(home, figure, monkeypatch, caplog):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    write_notebook(home, "06_features", code="1 < 2")
    write_executed(home, "06_features")
    write_profile(home, "")
    folder = home / "data" / "smoke"
    atlas, results = folder / "atlas" / "site_02.html", folder / "results.csv"
    write_text(atlas, "<p>latent 707</p>")
    replace_sealed(results, results_text([]).encode())
    (job,) = jobs_of("smoke")
    assert job.atlases == [atlas]
    write_record(job, "key", seals_of(job))
    built_index()
    assert caplog.text == ""
    atlas.write_text("<p>latent 708</p>")
    results.write_text(results.read_text().replace("fvu", "FVU", 1))
    index = built_index()
    assert "atlas/site_02.html was edited after 06_features had finished" in index
    assert "results.csv was edited after it was written; delete it and run notebook 02" in index


def test_an_atlas_and_results_without_a_seal_are_told(home, figure, monkeypatch):
    write_executed(home, "06_features")
    folder = home / "data" / "smoke"
    write_text(folder / "atlas" / "site_02.html", "<p>latent 707</p>")
    write_text(folder / "results.csv", results_text([]))
    report.build_report("smoke")
    details = (folder / "report" / "details.html").read_text()
    assert "No seal is kept of atlas/site_02.html, results.csv" in details


def test_what_has_no_seal_or_is_gone_is_told(home, figure, monkeypatch):
    monkeypatch.setattr("saelib.study.notebooks.PARAMETERS", {})
    folder = sealed_run(home, figure)
    (folder / "verdicts" / "02_x.txt").rename(folder / "verdicts" / "03_y.txt")
    index = report.build_report("smoke")
    assert "verdicts/02_x.txt is missing; run 02_x with --force" in index.read_text()
    details = index.with_name("details.html").read_text()
    assert "No seal is kept of verdicts/03_y.txt" in details
    (folder / "notebooks" / "02_x.json").write_text("")
    assert "notebooks/02_x.json: damaged, not JSON" in built_index()
    assert str(home) not in built_index()


def test_two_builds_of_one_report_are_equal_also_with_scripts_and_cells_without_ids(home, figure):
    path = write_executed(home)
    notebook = nbformat.read(path, as_version=4)
    script = new_output("display_data", {"application/javascript": "1"})
    notebook.cells.append(new_code_cell("show()", outputs=[script, script]))
    content = json.loads(nbformat.writes(notebook))
    for cell in content["cells"]:
        cell.pop("id")
    path.write_text(json.dumps(content | {"nbformat_minor": 4}))
    assert report.notebook_html(path) == report.notebook_html(path)


def test_control_sequences_in_a_recorded_sentence_do_not_reach_the_report(home, figure):
    write_executed(home)
    title = "\x1b]0;mine\x07\x1b[31mRed\x1b[0m"
    record_abstract("smoke", "02_x", f"The page {title} says so.")
    page = report.build_report("smoke").with_name("details.html").read_text()
    assert "The page Red says so." in page


def test_what_a_killed_report_left_goes_with_the_next_one(home):
    write_executed(home)
    folder = home / "data" / "smoke"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = temporary_name(folder / "report").name.replace(f".{os.getpid()}.", f".{dead.pid}.")
    (folder / name).mkdir()
    (folder / name / "index.html").write_text("half")
    report.build_report("smoke")
    assert not (folder / name).exists()


def edited_notebook(path: Path, cell: int, **fields: object) -> None:
    """Change fields of a cell of an executed notebook."""
    notebook = json.loads(path.read_text())
    notebook["cells"][cell] |= fields
    path.write_text(json.dumps(notebook))


def test_what_other_programs_left_beside_an_atlas_is_no_atlas(home, figure):
    write_executed(home)
    for name in ("site_02 copy", "._site_02", "site_02"):
        write_text(home / "data" / "smoke" / "atlas" / f"{name}.html", "x")
    folder = report.build_report("smoke").parent
    assert [path.name for path in folder.glob("*site*.html")] == ["site_02.html"]


def test_an_attachment_that_is_gone_and_a_picture_without_a_title_are_no_fault(home, figure):
    path = write_executed(home)
    text = "![x](attachment:a.png) ![y](attachment:there.png)"
    there = {"there.png": {"image/png": "aGVyZQ=="}}
    edited_notebook(path, 0, source=text, attachments=there)
    picture = {"output_type": "display_data", "data": {}, "metadata": {"image/png": 5}}
    edited_notebook(path, 1, outputs=[picture])
    page = report.build_report("smoke").with_name("02_x.html").read_text()
    assert "missing-attachment:a.png" in page
    assert "base64,aGVyZQ==" in page


def test_a_table_without_a_model_s_name_is_told(home, figure):
    write_executed(home)
    table = "run_id,model_id,site,tokens_trained,n_test_pages,n_test_tokens\nr1,,15,1000,21,5000\n"
    (home / "data" / "smoke" / "results.csv").write_text(table)
    with pytest.raises(ValueError, match=r"results\.csv: damaged \(model_id is empty\)"):
        report.facts("smoke")


@pytest.mark.parametrize("ending", ["json", "txt"])
def test_a_file_named_as_a_script_is_refused(home, figure, ending):
    write_executed(home)
    path = record_findings("smoke", "02_x", [finding("F4", figure)])
    name = f"javascript:alert(1).{ending}"
    path.rename(path.with_name(name))
    with pytest.raises(ValueError, match=r"javascript:alert\(1\)\.\w+: not named after a notebook"):
        report.build_report("smoke")


def test_a_link_in_the_place_of_the_report_is_refused_by_name(home, figure, tmp_path):
    write_executed(home)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = home / "data" / "smoke" / "report"
    folder.symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match=rf"{folder}: a file or a link where a folder"):
        report.build_report("smoke")
    assert list(elsewhere.iterdir()) == []
