"""Keep a finished run of a profile in the repository: notebooks, tables, findings, figures.

python tools/record.py PROFILE            # `make record PROFILE=default`
python tools/record.py --add 07 PROFILE   # one notebook: `make record PROFILE=full ARGS="--add 07"`
python tools/record.py --docs PROFILE     # write docs/findings.md and README's table again

    notebooks/published/<profile>/     the executed notebooks
    figures/<profile>/                 the figures
    data/recorded/<profile>/           tables, verdicts, estimates.json, sources.json
    docs/findings.md, README.md        the findings, of the profile that README summarises
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import added
import findings
import published

from saelib.env import data_dir, root
from saelib.files import replaced_folder, write_json, write_text
from saelib.run.jobs import Job, is_finished, jobs_of
from saelib.run.results import RESULTS
from saelib.seal import seal_files
from saelib.study.finding import load

TABLES = RESULTS, "timings.csv"


def finished(profile: str) -> list[Job]:
    """The notebooks of a profile's finished run.

    FileNotFoundError where anything lacks or is left over.
    """
    jobs = jobs_of(profile)
    missing = [
        f"{job.name} (not executed as code, profile and package are now)"
        for job in jobs
        if not is_finished(job)
    ]
    missing += _left_over(profile, jobs)
    missing += [name for name in TABLES if not (data_dir(profile) / name).is_file()]
    if missing or not jobs:
        lacking = ", ".join(missing) or "no notebooks"
        raise FileNotFoundError(f"profile {profile!r} is not a finished run: {lacking}")
    return jobs


def _left_over(profile: str, jobs: Sequence[Job]) -> list[str]:
    """Executed notebooks of the run that are no job's: failed, broken off, or no more."""
    expected = {job.output.name for job in jobs}
    paths = sorted(data_dir(profile).glob("notebooks/*.ipynb"))
    return [f"notebooks/{path.name}" for path in paths if path.name not in expected]


def record(profile: str) -> int:
    """Keep a finished run in the repository, in place of what was recorded of the profile.

    Returns the number of files kept. Raises FileNotFoundError where the run is not exactly the
    notebooks, each finished, and ValueError where its findings are damaged.
    """
    jobs = finished(profile)
    load(profile)  # refuses damaged findings while nothing is replaced
    claims = sorted(path for job in jobs for path in job.claims)
    pictures = [path for path in claims if path.suffix == ".png"]
    tables = [path for path in claims if path.suffix != ".png"]
    tables += [data_dir(profile) / name for name in TABLES]
    notebooks = [job.output for job in jobs]
    _keep(root() / "notebooks" / "published" / profile, notebooks)
    _keep(root() / "figures" / profile, pictures)
    _keep_tables(profile, tables, notebooks)
    write_docs(profile)
    return len(notebooks) + len(pictures) + len(tables)


def _keep(folder: Path, paths: Sequence[Path]) -> None:
    """Replace a folder by copies of files."""
    with replaced_folder(folder) as new:
        for path in paths:
            shutil.copyfile(path, new / path.name)


def _keep_tables(profile: str, tables: Sequence[Path], notebooks: Sequence[Path]) -> None:
    """Replace `data/recorded/<profile>/`: tables, findings, their estimates, the code's hashes."""
    source = data_dir(profile)
    with replaced_folder(data_dir("recorded") / profile) as new:
        for path in tables:
            text = path.read_text(encoding="utf-8")
            write_text(new / path.relative_to(source), text)
        estimates = {entry["name"]: entry["estimates"] for entry in load(profile)}
        text = json.dumps(estimates, indent=1, ensure_ascii=False)
        write_text(new / "estimates.json", text + "\n")
        write_json(new / "sources.json", published.hashes(notebooks))
        seal_files(new, [RESULTS])  # as `read_results` checks it


# -- README.md and docs/findings.md ---------------------------------------------------------------


def markers(profile: str) -> tuple[str, str]:
    """README's comments between which the table of a recorded profile's findings stands."""
    return f"<!-- summary: {profile} -->", f"<!-- /summary: {profile} -->"


def write_docs(profile: str) -> bool:
    """Write docs/findings.md and README's table; False where README summarises another profile."""
    readme = root() / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    start, end = markers(profile)
    before, opening, rest = text.partition(start)
    if not opening:
        return False
    after = rest.partition(end)[2]
    write_text(readme, f"{before}{start}\n{findings.summary(profile)}\n{end}{after}")
    write_text(root() / "docs" / "findings.md", findings.page(profile))
    return True


def _write_docs(profile: str) -> int:
    if write_docs(profile):
        print("docs/findings.md, README.md")
        return 0
    print(f"error: README.md has no place for profile {profile!r}: {markers(profile)[0]}")
    return 2


def add(profile: str, notebook: str) -> int:
    """Add one notebook's finished run to what is recorded of the profile: see `added.add`."""
    count = added.add(profile, notebook)
    write_docs(profile)
    return count


def main(args: Sequence[str]) -> int:
    try:
        match args:
            case ["--add", notebook, profile]:
                count = add(profile, notebook)
                print(f"added {count} files of {notebook} to the record of profile {profile}")
            case ["--docs", profile]:
                return _write_docs(profile)
            case [profile] if not profile.startswith("-"):
                print(f"recorded {record(profile)} files of profile {profile}")
            case _:
                print(__doc__)
                return 2
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
