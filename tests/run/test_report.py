"""Verdicts are checked when recorded; the report shows them without network or scripts."""

import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saelib.run import jobs, report
from saelib.study.estimate import Estimate
from saelib.study.finding import Finding
from saelib.study.finding import record as record_findings
from saelib.text.assets import MODEL_LABEL

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import record

TEXT = (
    "# Claim\n\nThe loss $L = \\Vert x - \\hat{x}\\Vert^2$; it costs $5 or $6. "
    "Code `$a$`, unknown $\\nosuch{x}$."
)


@pytest.fixture
def figure(home: Path) -> str:
    """A real PNG under figures/smoke."""
    (home / "figures" / "smoke").mkdir(parents=True)
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    for name in ("curve", "other"):
        fig.savefig(home / "figures" / "smoke" / f"{name}.png")
    plt.close(fig)
    return "figures/smoke/curve.png"


def verdict(figure: str, **changes: str) -> dict[str, str]:
    base = {
        "finding": "F4",
        "claim": "FVU falls & L0 rises",
        "verdict": "replicates",
        "cell": "How we know",
    }
    return base | {"effect": "0.3 [0.2, 0.4] <nats>", "figure": figure} | changes


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


def test_recorded_verdicts_come_back_sorted_by_finding_with_their_notebook(home, figure):
    report.record_verdicts("smoke", "02_x", [verdict(figure), verdict(figure, finding="F2a")])
    report.record_verdicts("smoke", "01_y", [verdict(figure, finding="F1", verdict="cannot tell")])
    report.record_verdicts(
        "smoke", "02_x", [verdict(figure), verdict(figure, finding="F2a")]
    )  # replaces, adds nothing
    found = report.read_verdicts("smoke")
    assert [(v["finding"], v["notebook"]) for v in found] == [
        ("F1", "01_y"),
        ("F2a", "02_x"),
        ("F4", "02_x"),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [("[{", r"02_x\.json: damaged"), ('[{"claim": "c"}]', r"02_x\.json, finding 0: fields")],
)
def test_a_damaged_file_of_verdicts_is_named(home, text, named):
    path = home / "data" / "smoke" / "verdicts" / "02_x.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        report.read_verdicts("smoke")


def test_a_finding_recorded_by_two_notebooks_is_refused_naming_both(home, figure):
    report.record_verdicts("smoke", "02_x", [verdict(figure), verdict(figure, finding="F0")])
    report.record_verdicts("smoke", "01_y", [verdict(figure)])
    with pytest.raises(ValueError, match="finding F4 is recorded twice, by 01_y and 02_x"):
        report.read_verdicts("smoke")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", "maybe"),
        ("finding", "5"),
        ("claim", ""),
        ("effect", 0.3),
        ("figure", "figures/smoke/none.png"),
        ("figure", "/etc/hostname"),
    ],
)
def test_a_wrong_verdict_is_refused_naming_notebook_field_and_value(home, figure, field, value):
    with pytest.raises(ValueError, match=f"verdict 1 of 02_x: {field} = {re.escape(repr(value))}"):
        report.record_verdicts("smoke", "02_x", [verdict(figure), verdict(figure) | {field: value}])
    assert not (home / "data").exists()


def test_a_verdict_lacks_no_field_and_has_no_other(home, figure):
    entry = verdict(figure)
    entry["effects"] = entry.pop("effect")
    with pytest.raises(ValueError, match="effects"):
        report.record_verdicts("smoke", "02_x", [entry])


def test_a_grid_point_s_verdicts_do_not_replace_the_profile_s(home, figure, monkeypatch):
    report.record_verdicts("smoke", "02_x", [verdict(figure)])
    monkeypatch.setenv("SAELIB_GRID", "abc")
    path = report.record_verdicts("smoke", "02_x", [verdict(figure, verdict="cannot tell")])
    assert path == home / "data" / "smoke" / "grid" / "abc" / "verdicts" / "02_x.json"
    assert report.read_verdicts("smoke")[0]["verdict"] == "replicates"


def test_formulas_become_images_and_code_prices_and_unknown_commands_stay_text():
    drawn = report.draw_formulas(TEXT + "\n\n$$a + b$$\n\n```\n$c$\n```")
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


def test_the_embedded_model_s_label_is_known_by_its_folder():
    from saelib.text import assets

    assert f'"{report.EMBEDDED}"' in Path(assets.__file__).read_text(encoding="utf-8")


def finding(name: str, figure: str, **changes: object) -> Finding:
    """A finding in today's form, with one estimate."""
    base = {
        "name": name,
        "claim": f"{name}: FVU falls & L0 rises",
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
    report.record_verdicts("smoke", "02_x", [verdict(figure)])
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
    assert "0.3 [0.2, 0.4] &lt;nats&gt;" in page
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


def test_the_first_screen_has_three_sentences_and_one_card_per_finding(home, figure):
    write_executed(home)
    other = "figures/smoke/other.png"
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
    report.record_abstract("smoke", "03_z", "Third & last.\n")
    report.record_abstract("smoke", "02_x", "The second says 0.3.")
    report.record_verdicts("smoke", "02_x", [verdict(figure)])
    page = report.build_report("smoke").with_name("details.html").read_text()
    said = page.index("The second says 0.3. Third &amp; last.")
    assert said < page.index('<article id="F4">')


@pytest.mark.parametrize("text", [" ", "It is nan times as large.", "From 0.1 [NaN, 2]."])
def test_an_abstract_without_its_numbers_is_refused(home, text):
    with pytest.raises(ValueError, match="abstract of 02_x = "):
        report.record_abstract("smoke", "02_x", text)


def test_the_embedded_model_goes_by_its_label_and_sites_by_their_number(home):
    (home / "data" / "smoke").mkdir(parents=True)
    rows = [f"{report.EMBEDDED}@0123,{site},9,9,9" for site in (15, 2, 29)] + ["other@4567,2,9,9,9"]
    columns = "model_id,site,tokens_trained,n_test_pages,n_test_tokens"
    (home / "data" / "smoke" / "results.csv").write_text("\n".join([columns, *rows, ""]))
    facts = dict(report.facts("smoke"))
    assert facts["model"] == f"{MODEL_LABEL}, other@4567"
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


def test_a_verdict_on_disk_is_plain_json(home, figure):
    path = report.record_verdicts("smoke", "02_x", [verdict(figure)])
    assert json.loads(path.read_text()) == [verdict(figure)]


OTHER = "<!-- findings: full -->\nof another profile\n<!-- /findings: full -->\n"
README = f"# Title\n\n{OTHER}<!-- findings: smoke -->\nold\n<!-- /findings: smoke -->\n\nRest.\n"


@pytest.fixture
def finished(home: Path, figure: str) -> Path:
    """A finished run of two notebooks, as the driver leaves one; the first has a verdict."""
    for name in ("02_x", "03_z"):
        parameters = new_code_cell("lr = 0.1", metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[parameters]), home / "notebooks" / f"{name}.ipynb")
    (home / "notebooks" / "profiles" / "smoke.yaml").write_text("common: {lr: 0.2}\n")
    for job in jobs.jobs_of("smoke"):
        write_executed(home, job.name)
        job.record.write_text(json.dumps({"key": jobs.job_key(job)}))
    report.record_verdicts("smoke", "02_x", [verdict(figure)])
    for name in record.TABLES:
        (home / "data" / "smoke" / name).write_text("run_id\n")
    (home / "README.md").write_text(README)
    return home


def test_recording_keeps_notebooks_tables_and_the_findings_in_the_readme(finished, figure):
    published, kept = (
        finished / "notebooks" / "published" / "smoke",
        finished / "data" / "recorded" / "smoke",
    )
    for old in (
        published / "09_old.ipynb",
        kept / "verdicts" / "09_old.json",
    ):  # of a run recorded before
        old.parent.mkdir(parents=True)
        old.write_text("")
    report.record_verdicts(
        "smoke", "09_gone", [verdict(figure, finding="F9")]
    )  # of a notebook that is no more
    report.record_table("smoke", "02_gaps", pd.DataFrame({"gap": [0.1]}))
    report.record_abstract("smoke", "02_x", "It falls.")
    report.record_table("smoke", "09_gone", pd.DataFrame({"gap": [0.1]}))
    record.record("smoke")
    assert sorted(p.name for p in published.iterdir()) == ["02_x.ipynb", "03_z.ipynb"]
    assert (published / "02_x.ipynb").read_text() == (
        finished / "data" / "smoke" / "notebooks" / "02_x.ipynb"
    ).read_text()
    assert sorted(p.name for p in kept.iterdir()) == [
        "diagnostics",
        "results.csv",
        "timings.csv",
        "verdicts",
    ]
    assert [p.name for p in (kept / "diagnostics").iterdir()] == ["02_gaps.csv"]
    assert (kept / "diagnostics" / "02_gaps.csv").read_text() == "gap\n0.1\n"
    assert sorted(p.name for p in (kept / "verdicts").iterdir()) == ["02_x.json", "02_x.txt"]
    text = (finished / "README.md").read_text()
    assert text.startswith(
        f"# Title\n\n{OTHER}<!-- findings: smoke -->\nIt falls.\n\n| | as reported"
    )
    assert text.endswith("<!-- /findings: smoke -->\n\nRest.\n")
    assert "old" not in text
    assert record.findings_table("smoke", report.read_verdicts("recorded/smoke")) in text
    assert f"**{verdict(figure)['verdict']}**" in text
    assert "notebooks/published/smoke/02_x.ipynb" in text


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda home, run: (run / "03_z.ipynb").rename(run / "03_z.failed.ipynb"),
            "notebooks/03_z.failed.ipynb",
        ),
        (
            lambda home, run: (run / "03_z.ipynb").rename(run / "03_z.partial.ipynb"),
            "notebooks/03_z.partial.ipynb",
        ),
        (lambda home, run: (run / "03_z.ipynb").unlink(), "03_z "),
        (lambda home, run: (run / "03_z.json").unlink(), "03_z "),
        (
            lambda home, run: (run / "02_x.ipynb").rename(run / "09_old.ipynb"),
            "notebooks/09_old.ipynb",
        ),
        (
            lambda home, run: (home / "notebooks" / "profiles" / "smoke.yaml").write_text(""),
            "02_x ",
        ),
        (lambda home, run: (run.parent / "timings.csv").unlink(), "timings.csv"),
    ],
)
def test_a_run_that_is_not_whole_is_not_recorded_and_what_was_recorded_stays(
    finished, spoil, named
):
    kept = finished / "data" / "recorded" / "smoke" / "results.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("earlier\n")
    spoil(finished, finished / "data" / "smoke" / "notebooks")
    with pytest.raises(
        FileNotFoundError, match=f"'smoke' is not a finished run: .*{re.escape(named)}"
    ):
        record.record("smoke")
    assert (finished / "README.md").read_text() == README
    assert kept.read_text() == "earlier\n"


def test_a_recording_that_breaks_off_leaves_the_notebooks_recorded_before(finished):
    old = finished / "notebooks" / "published" / "smoke" / "02_x.ipynb"
    old.parent.mkdir(parents=True)
    old.write_text("earlier")
    (finished / "data" / "smoke" / "notebooks" / "03_z.ipynb").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        record.record("smoke")
    assert old.read_text() == "earlier"


def test_a_profile_without_a_place_in_the_readme_leaves_it_as_it_is(finished):
    (finished / "README.md").write_text(OTHER)
    record.record("smoke")
    assert (finished / "README.md").read_text() == OTHER


def test_a_damaged_table_is_named(home):
    report.record_table("smoke", "02_gaps", pd.DataFrame({"gap": [0.1]})).write_text("")
    with pytest.raises(ValueError, match=r"02_gaps\.csv: damaged .*run notebook 02 again"):
        report.read_table("smoke", "02_gaps")


def test_a_table_is_named_after_its_notebook(home):
    with pytest.raises(ValueError, match=r"table name = '\.\./x'"):
        report.record_table("smoke", "../x", pd.DataFrame())


def test_a_recorded_table_is_read_back_and_a_missing_one_names_its_notebook(home, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"02_curves\.csv is missing: run notebook 02 with profile 'smoke'"
    ):
        report.read_table("smoke", "02_curves")
    table = pd.DataFrame({"run_id": ["77e5", "0012"], "fvu": [0.1, 1 / 3]})
    report.record_table("smoke", "02_curves", table)
    pd.testing.assert_frame_equal(report.read_table("smoke", "02_curves"), table)
    monkeypatch.setenv("SAELIB_GRID", "abc")  # a grid point whose notebook 02 is not run anew
    pd.testing.assert_frame_equal(report.read_table("smoke", "02_curves"), table)
    report.record_table("smoke", "02_curves", table.iloc[:1])
    assert len(report.read_table("smoke", "02_curves")) == 1


@pytest.mark.parametrize("profile", ["default", "full"])
def test_the_readme_states_what_was_recorded_and_nothing_else(profile):
    repository = Path(__file__).resolve().parents[2]
    readme = (repository / "README.md").read_text(encoding="utf-8")
    start, end = record.markers(profile)
    between = readme.partition(start)[2].partition(end)[0].strip()
    assert re.findall(r"@[A-Z_]+@", readme) == []  # a number still to be filled in
    recorded = repository / "data" / "recorded" / profile / "verdicts"
    if not recorded.is_dir():
        assert between == "No run is recorded yet."
        return
    verdicts = report.read_verdicts(f"recorded/{profile}")
    assert {v["finding"][:2] for v in verdicts} >= {"F1", "F2", "F3", "F4"}
    assert between == record.findings(profile)
