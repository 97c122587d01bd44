"""Processes that are killed, or refused the disk, at the n-th change of a file; then one goes on.

    LD_PRELOAD=file_faults.so python -m helpers.kills FOLDER --kills 20 --seed 0 --json PATH

A trial forks a process that has imported everything, and works in a folder of its own. `campaign`
builds `file_faults.c` and starts this module with it.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch

from helpers.processes import free_port, place
from helpers.whole_profile import (
    PROFILE,
    collect,
    differences,
    make_home,
    run_profile,
    run_stages,
    train,
    tree,
    write_workbook,
)
from saelib.ranks import process_group
from saelib.run.check import check_profile, profiles

COUNT, BEFORE, AFTER, HALF, FROM, ONCE = range(6)
ENDINGS = {"before": BEFORE, "after": AFTER, "half written": HALF}
REFUSALS = {"full disk": errno.ENOSPC, "input/output error": errno.EIO, "read-only": errno.EROFS}
ATTEMPTS = 60  # kills of one trial, at most; then it goes on undisturbed
SHARE = 8  # a run is killed within the first eighth of as many changes as a whole one makes
CRASHED = 70  # exit status of a process that ended with a traceback
RANKS = 2
RANK_KILLS = 6  # of one trial
LATEST = 1.5  # seconds by which the second of a pair is later, at most
HERE = Path(__file__).parent


@dataclass
class Outcome:
    """What became of one trial."""

    kind: str
    seed: int
    kills: int = 0
    places: Counter = field(default_factory=Counter)  # kills by the folder that was changed
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


# -- one process -----------------------------------------------------------------------------------


def changes() -> ctypes.CDLL:
    """The preloaded library that counts changes; None where it is not preloaded."""
    library = ctypes.CDLL(None)
    library.file_faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    library.file_faults_count.restype = ctypes.c_long
    return library


@dataclass(frozen=True)
class Disturbance:
    """What happens to a process at its n-th change of a file; nothing by default."""

    at: int = 0
    fault: int = COUNT
    error: int = 0


NOTHING = Disturbance()


def fork(work, home: Path, log: Path, disturbance: Disturbance) -> int:
    """Call work(home) in a forked process, its output in `log`; the number of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = CRASHED
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        library = changes()
        what = (disturbance.at, disturbance.fault, disturbance.error)
        library.file_faults_arm(str(home / "data").encode(), *what)
        status = work(home) or 0
        print(f"\n[changes] {library.file_faults_count()}")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def in_child(work, home: Path, log: Path, disturbance: Disturbance = NOTHING) -> int:
    """`fork`, waited for: its exit status, or minus the number of the signal that ended it."""
    return status_of(fork(work, home, log, disturbance))


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def as_ranks(home: Path, logs: Sequence[Path], odd: int, disturbance: Disturbance) -> list[int]:
    """Collect and train in two processes that share the work, one of them disturbed; statuses.

    Where one ends badly the other is killed, as torchrun does.
    """
    port = free_port()
    pids = [
        fork(partial(_one_rank, rank, port), home, log, disturbance if rank == odd else NOTHING)
        for rank, log in enumerate(logs)
    ]
    statuses = {}
    while len(statuses) < len(pids):
        pid, status = os.wait()
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if statuses[pid]:
            for other in set(pids) - set(statuses):
                os.kill(other, signal.SIGKILL)
    return [statuses[pid] for pid in pids]


def _one_rank(rank: int, port: int, home: Path) -> None:
    os.environ["SAELIB_HOME"] = str(home)
    place(rank, RANKS, port)
    with process_group("cpu") as ranks:
        collect(PROFILE, ranks)
        train(PROFILE, ranks)


def _with_two_threads(home: Path) -> int:
    torch.set_num_threads(2)
    return run_profile(home)


def _later(work, delay: float, home: Path) -> int:
    time.sleep(delay)
    return work(home)


def _killed_at(log: Path, home: Path) -> str:
    """Which folder of the profile was being changed."""
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.startswith("[killed at]")]
    name = lines[-1].removeprefix("[killed at] ") if lines else ""
    below = name.removeprefix(f"{home / 'data' / PROFILE}").strip("/")
    parts = below.split("/")
    return parts[0] if len(parts) > 1 else "other files"


# -- trials ----------------------------------------------------------------------------------------


class Campaign:
    """Trials of `run_profile` in a folder, compared with what an undisturbed run leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        write_workbook(folder)
        warm = make_home(folder, "warm")
        with _silent():
            if run_profile(warm):  # imports everything
                raise RuntimeError(f"the undisturbed run failed, see {self.log}")
        shutil.rmtree(warm)
        home = make_home(folder, "undisturbed")
        self._go_on(home)
        self.expected = tree(home)
        self.changes = self._counted()
        self._refused: dict[int, int] = {}  # changes of a run that an error can hit

    def killed(self, seed: int) -> Outcome:
        """Kill a run and those that go on with it, until one comes to its end."""
        draw = random.Random(f"kills {seed}")
        outcome = Outcome("killed", seed)
        start = time.monotonic()
        home = make_home(self.folder, f"killed_{seed}")
        for _ in range(ATTEMPTS):
            status = in_child(run_profile, home, self.log, self._kill(draw))
            if status != -signal.SIGKILL:
                break
            outcome.kills += 1
            outcome.places[_killed_at(self.log, home)] += 1
        if status not in (0, -signal.SIGKILL):
            outcome.faults.append(f"status {status} after a kill: {self._said()}")
        return self._ended(home, outcome, start)

    def _kill(self, draw: random.Random) -> Disturbance:
        at = draw.randint(1, self.changes // SHARE)
        return Disturbance(at, ENDINGS[draw.choice(sorted(ENDINGS))])

    def lost_ranks(self, seed: int) -> Outcome:
        """Two ranks, of which one is killed again and again; then one process goes on."""
        draw = random.Random(f"ranks {seed}")
        outcome = Outcome("lost rank", seed)
        start = time.monotonic()
        home = make_home(self.folder, f"ranks_{seed}")
        logs = [self.folder / f"rank_{rank}.txt" for rank in range(RANKS)]
        for _ in range(RANK_KILLS):
            odd = draw.randrange(RANKS)
            statuses = as_ranks(home, logs, odd, self._kill(draw))
            if statuses[odd] != -signal.SIGKILL:
                break
            outcome.kills += 1
            outcome.places[_killed_at(logs[odd], home)] += 1
        if statuses[odd] not in (0, -signal.SIGKILL):
            said = logs[odd].read_text(errors="replace")[-1500:]
            outcome.faults.append(f"statuses {statuses} after a kill: {said}")
        return self._ended(home, outcome, start)

    def other_threads(self, seed: int) -> Outcome:
        """A run begun with two threads and killed midway; one with a single thread goes on."""
        draw = random.Random(f"threads {seed}")
        outcome = Outcome("threads", seed)
        start = time.monotonic()
        home = make_home(self.folder, f"threads_{seed}")
        at = draw.randint(self.changes // 4, 3 * self.changes // 4)
        status = in_child(_with_two_threads, home, self.log, Disturbance(at, BEFORE))
        if status != -signal.SIGKILL:
            outcome.faults.append(f"status {status} before change {at}: {self._said()}")
        outcome.kills += 1
        return self._ended(home, outcome, start)

    def pair(self, seed: int) -> Outcome:
        """Two processes at once; the second runs the profile too, or its stages without a driver.

        Only what either leaves is compared: nobody goes on afterwards.
        """
        draw = random.Random(f"pair {seed}")
        outcome = Outcome("pair", seed)
        start = time.monotonic()
        home = make_home(self.folder, f"pair_{seed}")
        logs = [self.folder / f"pair_{which}.txt" for which in range(2)]
        second = partial(_later, draw.choice((run_stages, run_profile)), draw.uniform(0, LATEST))
        pids = [
            fork(work, home, log, NOTHING)
            for work, log in zip((run_profile, second), logs, strict=True)
        ]
        for pid, log in zip(pids, logs, strict=True):
            if status := status_of(pid):
                said = log.read_text(errors="replace")[-1500:]
                outcome.faults.append(f"status {status}: {said}")
        return self._compared(home, outcome, start)

    def refused(self, kind: str, seed: int) -> Outcome:
        """A run whose disk fails from some change on, or once; then one on a sound disk."""
        draw = random.Random(f"{kind} {seed}")
        error = REFUSALS[kind]
        outcome = Outcome(kind, seed)
        start = time.monotonic()
        home = make_home(self.folder, f"refused_{error}_{seed}")
        at = draw.randint(1, self._changes_refused(error))
        fault = draw.choice((FROM, ONCE))
        status = in_child(run_profile, home, self.log, Disturbance(at, fault, error))
        text = self.log.read_text(errors="replace")
        if status and not _names_a_file(text, home, os.strerror(error)):
            outcome.faults.append(f"status {status}, no file and reason named: {self._said()}")
        if "Traceback" in text or status not in (0, 1, 2):
            outcome.faults.append(f"status {status}, a traceback: {self._said()}")
        if fault == FROM and status == 0:
            outcome.faults.append(f"status 0 on a disk that failed: {self._said()}")
        if error != errno.EROFS or fault == ONCE:
            outcome.faults += [f"litter: {path}" for path in _temporaries(home)]
        outcome.faults += _damages(home)
        return self._ended(home, outcome, start)

    def _changes_refused(self, error: int) -> int:
        """How many changes of an undisturbed run could have failed with this error."""
        if error not in self._refused:
            home = make_home(self.folder, f"counted_{error}")
            in_child(run_profile, home, self.log, Disturbance(sys.maxsize, FROM, error))
            self._refused[error] = self._counted()
            shutil.rmtree(home)
        return self._refused[error]

    def _counted(self) -> int:
        return int(self.log.read_text().rpartition("[changes] ")[2])

    def _ended(self, home: Path, outcome: Outcome, start: float) -> Outcome:
        """Go on undisturbed; what then differs is a fault."""
        self._go_on(home, outcome.faults)
        return self._compared(home, outcome, start)

    def _compared(self, home: Path, outcome: Outcome, start: float) -> Outcome:
        """What differs from an undisturbed run is a fault; a folder without one is removed."""
        outcome.faults += differences(tree(home), self.expected)
        outcome.faults += _damages(home)
        outcome.seconds = time.monotonic() - start
        if not outcome.faults:
            shutil.rmtree(home)
        return outcome

    def _go_on(self, home: Path, faults: list[str] | None = None) -> None:
        status = in_child(run_profile, home, self.log)
        if status and faults is None:
            raise RuntimeError(f"the undisturbed run failed: {self._said()}")
        if status:
            faults.append(f"status {status} of the run that went on: {self._said()}")

    def _said(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-12:])[-1500:]


def _names_a_file(text: str, home: Path, reason: str) -> bool:
    """Whether one line names a file of the workbook and why it could not be written."""
    places = (str(home), f"data/{PROFILE}", "notebooks/")
    return any(
        reason in line and any(place in line for place in places) for line in text.splitlines()
    )


def _temporaries(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*.tmp")]


def _damages(home: Path) -> list[str]:
    """What `python -m saelib check` finds damaged, in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.environ["SAELIB_HOME"] = str(home)
        lines = check_profile(PROFILE).damaged if PROFILE in profiles() else []
        os.write(write, json.dumps(lines)[:60_000].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return [f"damaged: {line}" for line in json.loads(answer or '["check crashed"]')]


class _silent:
    """Nothing of this process reaches its standard output."""

    def __enter__(self):
        sys.stdout.flush()
        self._kept = os.dup(1)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)

    def __exit__(self, *exception):
        sys.stdout.flush()
        os.dup2(self._kept, 1)
        os.close(self._kept)


# -- the process that has the library --------------------------------------------------------------


def build(folder: Path) -> Path:
    """The library; CalledProcessError without a compiler."""
    library = folder / "file_faults.so"
    compiler = os.environ.get("CC", "cc")
    source = HERE / "file_faults.c"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def campaign(folder: Path, seed: int = 0, log: Path | None = None, **numbers: int) -> list[dict]:
    """A row for each trial.

    log: where trials are kept as they end; those that it holds are not made again.

    numbers: `kills`, at least so many; `refusals`, so many trials of each; `ranks`, `pairs` and
    `threads`, so many trials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = log or folder / "outcomes.jsonl"
    variables = {
        "LD_PRELOAD": str(build(folder)),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
        "SAELIB_HEADLESS": "1",
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "helpers.kills", str(folder), "--seed", str(seed)]
    command += ["--json", str(answer)]
    for name, number in numbers.items():
        command += [f"--{name}", str(number)]
    subprocess.run(command, env=os.environ | variables, check=True)
    return kept(answer)


def kept(log: Path) -> list[dict]:
    """Trials that have ended."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    for name in ("kills", "refusals", "ranks", "pairs", "threads", "seed"):
        options.add_argument(f"--{name}", type=int, default=0)
    options.add_argument("--json", type=Path, required=True)
    args = options.parse_args()
    torch.set_num_threads(1)
    begun = cache(lambda: Campaign(Path(tempfile.mkdtemp(dir=args.folder))))
    done = {(row["kind"], row["seed"]): row["kills"] for row in kept(args.json)}
    with args.json.open("a") as file:
        for outcome in _outcomes(begun, args, done):
            file.write(json.dumps(vars(outcome) | {"changes": begun().changes}) + "\n")
            file.flush()


def _outcomes(
    begun: Callable[[], Campaign], args: argparse.Namespace, done: Mapping[tuple[str, int], int]
) -> Iterator[Outcome]:
    """Trials that are asked for and not done yet."""
    for kind, asked, trial in (
        *((kind, args.refusals, partial(Campaign.refused, kind=kind)) for kind in REFUSALS),
        ("threads", args.threads, Campaign.other_threads),
        ("pair", args.pairs, Campaign.pair),
        ("lost rank", args.ranks, Campaign.lost_ranks),
    ):
        for number in range(args.seed, args.seed + asked):
            if (kind, number) not in done:
                yield trial(begun(), seed=number)
    killed = sum(done.values()) if args.kills else 0
    number = args.seed
    while killed < args.kills:
        if ("killed", number) not in done:
            outcome = begun().killed(number)
            killed += outcome.kills
            yield outcome
        number += 1


if __name__ == "__main__":
    main()
