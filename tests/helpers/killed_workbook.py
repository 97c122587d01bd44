"""`python -m saelib run` with its kernels, killed again and again."""

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

POLL = 0.1  # seconds between two looks at what is there
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
    """Files of a profile, temporary ones too."""
    return sum(len(files) for _, _, files in os.walk(home / "data" / profile))


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
        process = start(home, arguments, log, threads(outcome.kills))
        delay = draw.uniform(0, LATER)
        while process.poll() is None:
            if moment is not None and n_files(home, profile) >= moment:
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
