"""A run is recorded whole or not at all; README and docs/findings.md say what is recorded."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.recording import FIGURE, OTHER, README, names, one_finding
from nbformat.v4 import new_code_cell, new_notebook

from saelib.run import jobs
from saelib.study import finding
from saelib.study.estimate import undefined

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import findings
import published
import record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def finished(home: Path) -> Path:
    """A finished run of two notebooks, as the driver leaves one; the first has a finding."""
    run = home / "data" / "smoke"
    (run / "figures").mkdir(parents=True)
    for name in ("02_a", "09_gone"):
        (run / "figures" / f"{name}.png").write_bytes(b"png")
    cell = new_code_cell("lr = 0.1", metadata={"tags": ["parameters"]})
    for name in ("02_x", "03_z"):
        nbformat.write(new_notebook(cells=[cell]), home / "notebooks" / f"{name}.ipynb")
    (home / "notebooks" / "profiles" / "smoke.yaml").write_text("common: {lr: 0.2}\n")
    (run / "notebooks").mkdir()
    given = new_code_cell("lr = 0.2", metadata={"tags": ["injected-parameters"]})
    for job in jobs.jobs_of("smoke"):
        nbformat.write(new_notebook(cells=[cell, given]), job.output)
        job.record.write_text(json.dumps({"key": jobs.job_key(job)}))
    finding.record("smoke", "02_x", [one_finding()])
    for name in record.TABLES:
        (run / name).write_text("run_id\n")
    (run / "results.csv").write_text(
        "model_id,site,tokens_trained,n_test_pages,n_test_tokens\nm,2,9,21,8\n"
    )
    (home / "README.md").write_text(README)
    return home


def test_recording_keeps_notebooks_tables_findings_and_figures_of_the_run(finished):
    copies = finished / "notebooks" / "published" / "smoke"
    kept = finished / "data" / "recorded" / "smoke"
    pictures = finished / "figures" / "smoke"
    for folder in (copies, kept / "verdicts", pictures):  # of a run recorded before
        folder.mkdir(parents=True)
        (folder / "09_old").write_text("")
    finding.record_table("smoke", "02_gaps", pd.DataFrame({"gap": [0.1]}))
    finding.record_abstract("smoke", "02_x", "It falls.")
    finding.record_table("smoke", "09_gone", pd.DataFrame({"gap": [0.1]}))  # of no notebook
    record.record("smoke")
    assert names(copies) == ["02_x.ipynb", "03_z.ipynb"]
    executed = finished / "data" / "smoke" / "notebooks" / "02_x.ipynb"
    assert (copies / "02_x.ipynb").read_bytes() == executed.read_bytes()
    files = ["estimates.json", "results.csv", "seal.json", "sources.json", "timings.csv"]
    assert names(kept) == sorted([*files, "diagnostics", "verdicts"])
    assert (kept / "diagnostics" / "02_gaps.csv").read_text() == "gap\n0.1\n"
    assert names(kept / "diagnostics") == ["02_gaps.csv"]
    assert names(kept / "verdicts") == ["02_x.json", "02_x.txt"]
    assert names(pictures) == ["02_a.png"]


def test_recorded_estimates_are_those_of_the_run(finished):
    record.record("smoke")
    rows = finding.recorded_estimates("smoke")
    assert rows["F4"]["site 2, power of λ"] == {"value": 0.5, "lo": 0.25, "hi": 0.75}


def test_the_readme_s_table_and_the_page_of_findings_follow_the_recording(finished):
    record.record("smoke")
    text = (finished / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{OTHER}<!-- summary: smoke -->\n| finding |")
    assert text.endswith("<!-- /summary: smoke -->\n\nRest.\n")
    row = next(line for line in text.splitlines() if line.startswith("| F4"))
    assert "| replicates | FVU grows as λ to the power 0.5 to 1 |" in row
    assert "(notebooks/published/smoke/02_x.ipynb)" in row
    page = (finished / "docs" / "findings.md").read_text()
    size, section = page.partition("### F4")[::2]
    assert "profile `smoke`" in size
    assert "test pages: 21" in size
    assert "Earlier form" not in size
    assert "**Supported.** It falls." in section
    assert "Supported below 1." in section
    assert "| site 2, power of λ | 0.5 [0.25, 0.75] |" in section
    assert "(../notebooks/published/smoke/02_x.ipynb)" in section


def test_a_run_s_figure_is_shown_from_the_repository_once_the_run_is_gone(finished):
    record.record("smoke")
    (finished / FIGURE).unlink()
    assert "(../figures/smoke/02_a.png)" in findings.page("smoke")


def test_a_profile_without_a_place_in_the_readme_leaves_readme_and_docs_as_they_are(finished):
    (finished / "README.md").write_text(OTHER)
    record.record("smoke")
    assert (finished / "README.md").read_text() == OTHER
    assert not (finished / "docs").exists()
    assert record.main(["--docs", "smoke"]) == 2


def test_a_notebook_changed_since_is_named_by_its_earlier_form(finished):
    record.record("smoke")
    assert published.older("smoke") == []
    cell = new_code_cell("lr = 0.3", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), finished / "notebooks" / "03_z.ipynb")
    assert published.older("smoke") == ["03_z"]
    assert "**Earlier form:** the published copies of 03_z" in findings.page("smoke")


SPOILED = [
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
    (lambda home, run: (run / "02_x.ipynb").rename(run / "09_old.ipynb"), "notebooks/09_old.ipynb"),
    (lambda home, run: (home / "notebooks" / "profiles" / "smoke.yaml").write_text(""), "02_x "),
    (lambda home, run: (run.parent / "timings.csv").unlink(), "timings.csv"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILED)
def test_a_run_that_is_not_whole_is_not_recorded_and_what_was_recorded_stays(
    finished, spoil, named
):
    kept = finished / "data" / "recorded" / "smoke" / "results.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("earlier\n")
    spoil(finished, finished / "data" / "smoke" / "notebooks")
    message = f"'smoke' is not a finished run: .*{re.escape(named)}"
    with pytest.raises(FileNotFoundError, match=message):
        record.record("smoke")
    assert (finished / "README.md").read_text() == README
    assert kept.read_text() == "earlier\n"


def test_damaged_findings_are_refused_while_nothing_is_replaced(finished):
    (finished / "data" / "smoke" / "verdicts" / "02_x.json").write_text("[{")
    assert record.main(["smoke"]) == 2
    assert not (finished / "notebooks" / "published" / "smoke").exists()


def test_a_command_without_one_profile_says_how_it_is_called(capsys):
    assert record.main([]) == 2
    assert record.main(["--other", "full"]) == 2
    assert "python tools/record.py PROFILE" in capsys.readouterr().out


def test_what_is_not_reached_is_said_in_words(finished):
    finding.record("smoke", "02_x", [one_finding(estimates={"site 2, power of λ": undefined()})])
    record.record("smoke")
    assert "FVU grows as λ to the power not reached" in findings.summary("smoke")
    assert "| site 2, power of λ | undefined |" in findings.page("smoke")


def test_a_table_of_estimates_has_at_most_twelve_rows_and_says_what_it_leaves_out():
    row = {"value": 1.0, "lo": 0.5, "hi": 1.5}
    text = findings.estimate_table({f"site {i}": row for i in range(14)})
    assert text.count("1 [0.5, 1.5]") == 12
    assert text.endswith("2 more are in `estimates.json`.")


def test_a_record_without_rules_is_printed_with_the_rules_of_the_study(finished):
    record.record("smoke")
    path = finished / "data" / "recorded" / "smoke" / "verdicts" / "02_x.json"
    older = [{"finding": "F1", "effect": "It is 1.", "cell": "End", "verdict": "cannot tell"}]
    older[0] |= {"claim": "Restarts train badly.", "figure": "figures/smoke/02_a.png"}
    path.write_text(json.dumps(older))
    copy = finished / "notebooks" / "published" / "smoke" / "02_x.ipynb"
    cells = [
        new_code_cell("margin: float = 0.05", metadata={"tags": ["parameters"]}),
        new_code_cell("margin = 0.25", metadata={"tags": ["injected-parameters"]}),
    ]
    nbformat.write(new_notebook(cells=cells), copy)
    page = findings.page("smoke")
    assert "cost more than 25% in FVU" in page
    assert "lies above 1.25, three times" in page
    assert "Stated in the notebook" not in page


@pytest.mark.parametrize("profile", ["default", "full"])
def test_every_recorded_finding_has_a_rule_with_its_numbers(profile):
    for entry in findings.entries(profile):
        assert entry["rule"] != finding.NO_RULE, entry["name"]
        assert not re.search(r"[{}]|\bnan\b", entry["rule"]), entry["name"]


# -- the repository's own record ----------------------------------------------------------------


def test_the_readme_and_the_page_of_findings_state_what_was_recorded_and_nothing_else():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = record.markers("full")
    assert readme.partition(start)[2].partition(end)[0].strip() == findings.summary("full")
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == findings.page("full")
    assert ("**Earlier form:**" in page) == bool(published.older("full"))
    assert re.findall(r"@[A-Z_]+@", readme) == []  # a number still to be filled in


@pytest.mark.parametrize("profile", ["default", "full"])
def test_every_reported_finding_was_recorded(profile):
    reported = {entry["name"][:2] for entry in findings.entries(profile)}
    assert reported >= {"F0", "F1", "F2", "F3", "F4"}


@pytest.mark.parametrize("profile", ["default", "full"])
def test_nobody_edits_the_code_of_a_published_copy(profile):
    recorded = published.recorded_hashes(profile)
    assert recorded == published.hashes(published.copies(profile))
    assert len(recorded) >= 6
