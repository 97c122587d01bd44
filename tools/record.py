"""Keep a finished run of a profile in the repository: executed notebooks, tables, verdicts, and README's findings.

python tools/record.py PROFILE        # `make record PROFILE=default`
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from saelib.env import data_dir, root
from saelib.files import replaced_folder, write_text
from saelib.run.jobs import Job, is_finished, jobs_of
from saelib.run.report import FINDINGS, read_abstract, read_verdicts

TABLES = "results.csv", "timings.csv"


def markers(profile: str) -> tuple[str, str]:
    """README's comments between which a recorded profile's findings stand."""
    return f"<!-- findings: {profile} -->", f"<!-- /findings: {profile} -->"


def _with_findings(readme: str, profile: str, text: str) -> str:
    """README with a profile's findings; as it is where it has no place for them."""
    start, end = markers(profile)
    before, found, rest = readme.partition(start)
    after = rest.partition(end)[2]
    return f"{before}{start}\n{text}\n{end}{after}" if found else readme


def findings(profile: str) -> str:
    """README's account of a recorded profile in Markdown: its notebooks' abstract and the table of their verdicts."""
    kept = f"recorded/{profile}"
    abstract = read_abstract(kept)
    return (f"{abstract}\n\n" if abstract else "") + findings_table(profile, read_verdicts(kept))


def findings_table(profile: str, verdicts: Sequence[Mapping[str, str]]) -> str:
    """The table of findings in Markdown, from recorded verdicts alone."""
    lines = [
        "| | as reported | part | verdict | measured | computed in |",
        "|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        reported = FINDINGS.get(v["finding"][:2], "")
        where = (
            f"[{v['notebook']}](notebooks/published/{profile}/{v['notebook']}.ipynb), {v['cell']}"
        )
        cells = (v["finding"], reported, v["claim"], f"**{v['verdict']}**", v["effect"], where)
        lines.append(
            "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )
    return "\n".join(lines)


def finished(profile: str) -> list[Job]:
    """The notebooks of a profile's finished run; FileNotFoundError where anything lacks or is left over."""
    source, jobs = data_dir(profile), jobs_of(profile)
    missing = [
        f"{job.name} (not executed as code, profile and package are now)"
        for job in jobs
        if not is_finished(job)
    ]
    expected = {job.output.name for job in jobs}
    missing += [
        f"notebooks/{p.name}"
        for p in sorted(source.glob("notebooks/*.ipynb"))
        if p.name not in expected
    ]
    missing += [name for name in TABLES if not (source / name).is_file()]
    if missing or not jobs:
        raise FileNotFoundError(
            f"profile {profile!r} is not a finished run: {', '.join(missing) or 'no notebooks'}"
        )
    return jobs


def record(profile: str) -> list[Path]:
    """Keep a finished run in the repository: executed notebooks, tables, verdicts, and README's findings.

    Replaces `notebooks/published/<profile>/` and `data/recorded/<profile>/`; the figures already lie in
    `figures/<profile>/`. Raises FileNotFoundError where the run is not exactly the notebooks, each finished.
    """
    jobs, source = finished(profile), data_dir(profile)
    published, kept = root() / "notebooks" / "published" / profile, data_dir("recorded") / profile
    read_verdicts(profile)  # refuses two of one finding while nothing is replaced
    pairs = [(job.output, published / job.output.name) for job in jobs]
    told = [
        *sorted(path for job in jobs for path in job.claims),
        *(source / name for name in TABLES),
    ]
    pairs += [(path, kept / path.relative_to(source)) for path in told]
    for folder in (published, kept):
        with replaced_folder(folder) as temporary:
            for old, new in pairs:
                if new.is_relative_to(folder):
                    write_text(temporary / new.relative_to(folder), old.read_text(encoding="utf-8"))
    readme = root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    write_text(readme, _with_findings(text, profile, findings(profile)))
    return [new for _, new in pairs]


def main(args: Sequence[str]) -> int:
    if len(args) != 1:
        print(__doc__)
        return 2
    try:
        print(f"recorded {len(record(args[0]))} files of profile {args[0]}")
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
