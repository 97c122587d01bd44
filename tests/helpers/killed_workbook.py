"""`python -m saelib run` with its kernels, killed again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from saelib.run.results import read_results

POLL = 0.3  # seconds between two looks at what is there
LATER = 8.0  # a kill comes up to so many seconds after the file that it waits for
# Compared by their names alone: times and locks; notebook 01 says how much room there is, and the
# report shows it.
BY_NAME = (".locks", "notebooks", "report", "timings.csv", ".lock")


@dataclass
class KilledRun:
    """What became of it."""

    kills: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def make_home(folder: Path, root: Path) -> Path:
    """A workbook folder with the checkout's notebooks, assets and records."""
    (folder / "data").mkdir(parents=True)
    (folder / "notebooks").symlink_to(root / "notebooks")
    for name in ("assets", "recorded"):
        (folder / "data" / name).symlink_to(root / "data" / name)
    return folder


def start(home: Path, arguments: Sequence[str], log: Path, threads: int = 1) -> subprocess.Popen:
    """The run, its output added to `log`."""
    variables = {
        "SAELIB_HOME": str(home),
        "SAELIB_HEADLESS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
    }
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "saelib", "run", *arguments],
            env=os.environ | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the driver and to every process that it started; a kernel is no group's member."""
    for pid in [process.pid, *_descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(ancestor: int) -> list[int]:
    """Processes that a process started, and theirs."""
    parents = dict(_parents())
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {ancestor})


def _parents() -> Iterator[tuple[int, int]]:
    """Every process of this machine with its parent."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            yield int(folder.name), int(fields[1])


def n_files(home: Path, profile: str) -> int:
    """Files of a profile, temporary ones too, locks left out."""
    return len(list(_times(home / "data" / profile)))


def run_killed(
    home: Path,
    profile: str,
    arguments: Sequence[str],
    moments: Sequence[int],
    seed: int,
    log: Path,
    threads: Callable[[int], int] = lambda kills: 1,
) -> KilledRun:
    """Run a profile to its end, killed a little after each of `moments`, which count its files.

    threads: of the run that follows so many kills.
    """
    draw = random.Random(seed)
    outcome = KilledRun()
    began = time.monotonic()
    for moment in [*sorted(moments), None]:
        started = time.time()
        process = start(home, arguments, log, threads(outcome.kills))
        delay = draw.uniform(0, LATER)
        while process.poll() is None:
            if moment is not None and _is_due(home / "data" / profile, moment, started):
                time.sleep(delay)
                if process.poll() is None:
                    kill_all(process)
                    outcome.kills += 1
                break
            time.sleep(POLL)
        if process.poll() not in (0, -signal.SIGKILL):
            outcome.faults.append(f"status {process.returncode} after {outcome.kills} kills")
    outcome.seconds = time.monotonic() - began
    return outcome


def _is_due(folder: Path, moment: int, started: float) -> bool:
    """Whether so many files are there, of which this start has written one."""
    times = list(_times(folder))
    return len(times) >= moment and max(times) > started


def _times(folder: Path) -> Iterator[float]:
    for parent, _, names in os.walk(folder):  # which passes over a temporary folder that goes
        for name in names:
            with suppress(FileNotFoundError):
                if ".locks" not in Path(parent).parts:
                    yield os.stat(Path(parent) / name).st_mtime


def seeded_moments(n: int, files: int, seed: int) -> list[int]:
    """n numbers of files at which a run is killed, spread over all of it."""
    draw = random.Random(seed)
    return [max(1, int((i + draw.random()) * files / n)) for i in range(n)]


def unequal(home: Path, other: Path, profile: str) -> list[str]:
    """Files of a profile that differ between two homes, or that one of them lacks."""
    trees = [_files(folder / "data" / profile) for folder in (home, other)]
    lines = [f"one alone has {name}" for name in sorted(set(trees[0]) ^ set(trees[1]))]
    for name in sorted(set(trees[0]) & set(trees[1])):
        by_name = name.split("/")[0] in BY_NAME or Path(name).name in BY_NAME
        if not by_name and trees[0][name].read_bytes() != trees[1][name].read_bytes():
            lines.append(f"differs: {name}")
    return lines


def _files(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


# -- another number of threads ---------------------------------------------------------------------

MEASURED = ("fvu", "l0", "ce_id", "ce_sae", "loss_recovered")


def other_verdicts(home: Path, other: Path, profile: str) -> list[str]:
    """Claims on which two homes do not have the same verdict, or that one of them lacks."""
    one, two = (_verdicts(folder / "data" / profile) for folder in (home, other))
    names = sorted(set(one) | set(two))
    lines = [(name, one.get(name), two.get(name)) for name in names]
    return [f"{name}: {here}, not {there}" for name, here, there in lines if here != there]


def _verdicts(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("verdicts/*.json"))
    entries = [entry for path in files for entry in json.loads(path.read_text(encoding="utf-8"))]
    return {entry["name"]: entry["verdict"] for entry in entries}


def changes_of_results(home: Path, other: Path, profile: str) -> dict[str, float | int]:
    """SAEs that both homes trained, by run id, and the largest relative change of what was
    measured.
    """
    one, two = (read_results(folder / "data" / profile / "results.csv") for folder in (home, other))
    both = one.merge(two, on="run_id", suffixes=("", "_other"))
    changes = {"saes": len(both), "saes_alone": len(one) + len(two) - 2 * len(both)}
    for name in MEASURED:
        change = (both[name] / both[f"{name}_other"] - 1).abs().max()
        changes[f"{name}_change"] = float(change)
    return changes
