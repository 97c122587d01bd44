"""What checking costs where things are opened: this code beside an older commit's, in turn.

    python benchmarks/opening.py --before COMMIT [--profile default] [--rounds 7] [--json PATH]

Reads a finished profile of this checkout (`SAELIB_HOME` for another's) from a temporary copy whose
every run is sealed. Each round starts a process of either code, which opens the store and reads
rows of it, opens SAEs for the first time and again, and the rows and the table of results; and one
that opens a lens, language model and all, by `saelib.open`. A stage's number is the median over
rounds, in milliseconds; `ratio` is the median over rounds of a round's two.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, median, parser, report

from saelib.env import data_dir
from saelib.run.run_folder import ALL_FILES, METRICS
from saelib.seal import seal_files

CHECKOUT = Path(__file__).resolve().parents[1]
SAES = 20  # that a process opens
BESIDE = shutil.ignore_patterns("features*", "twins", "ablation", "descriptions")
ROWS = 16_384  # of the store, that a process reads
OPENER = """
import json, sys, time
from pathlib import Path
import numpy as np
from saelib.activations.store import Store
from saelib.run.run_folder import RunFolder
from saelib.run.workspace import Workspace
from saelib.sae import load_sae

profile, n_saes, n_rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
times = {}

def timed(name, call, n=1):
    start = time.perf_counter()
    result = call()
    times[name] = (time.perf_counter() - start) * 1000 / n
    return result

ws = timed("workspace", lambda: Workspace(profile))
stores = timed("store", lambda: [Store.open(ws.folder / "store") for _ in range(20)], 20)
store = stores[0]
site = store.sites[0]
rows = np.arange(min(n_rows, store.n_rows))
timed("rows of the store", lambda: store.rows(site, rows))
folders = [path for path in sorted((ws.folder / "saes").iterdir())][:n_saes]
load_sae(folders.pop())  # imports what it takes
timed("an SAE", lambda: [load_sae(folder) for folder in folders], len(folders))
timed("an SAE again", lambda: [load_sae(folder) for folder in folders], len(folders))
every = [path for path in (ws.folder / "saes").iterdir()]
timed("the rows of all runs", lambda: [RunFolder(path).row for path in every])
timed("results.csv", ws.results)
print(json.dumps(times))
"""
LENS = """
import json, sys, time
import saelib
from saelib.activations import lm

start = time.perf_counter()
saelib.open(sys.argv[1], l0=32)
print(json.dumps({"a lens": (time.perf_counter() - start) * 1000}))
"""


def code_of(commit: str, folder: Path) -> Path:
    """The package of a commit, unpacked into a folder."""
    command = ["git", "-C", str(CHECKOUT), "archive", commit, "saelib"]
    packed = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def sealed_copy(profile: str, home: Path) -> Path:
    """A home with a copy of the profile, every finished run sealed, and with the assets."""
    target = home / "data" / profile
    for name in ("store", "saes", "workspace.json", "results.csv"):
        source = data_dir(profile) / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=BESIDE)
        else:
            shutil.copy2(source, target / name)
    (home / "data" / "assets").symlink_to(data_dir("assets"))
    for run in sorted((target / "saes").iterdir()):
        names = [name for name in (*ALL_FILES, METRICS) if (run / name).is_file()]
        seal_files(run, names, run.name)
    seal_files(target, ["results.csv"])
    return home


def opened(code: Path, home: Path, profile: str, n_saes: int = SAES) -> dict[str, float]:
    """Milliseconds of each stage, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(code), "SAELIB_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "SAELIB_HEADLESS": "1"}
    times: dict[str, float] = {}
    for opener in (OPENER, LENS):
        command = [sys.executable, "-c", opener, profile, str(n_saes), str(ROWS)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=home
        )
        times |= json.loads(done.stdout.splitlines()[-1])
    return times


def compared(
    before: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """A row a stage: medians, and the median of the rounds' ratios."""
    return [
        {
            "stage": stage,
            "before_ms": median([times[stage] for times in before]),
            "now_ms": median([times[stage] for times in now]),
            "ratio": median([b[stage] / a[stage] for a, b in zip(before, now, strict=True)]),
        }
        for stage in before[0]
    ]


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--before", required=True, help="a commit to compare with")
    options.add_argument("--profile", default="default")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = sealed_copy(args.profile, Path(folder) / "home")
        codes = (code_of(args.before, Path(folder) / "before"), CHECKOUT)
        for code in codes:  # what lies in the page cache, and in caches of bytecode
            opened(code, home, args.profile)
        rounds = [[opened(code, home, args.profile) for code in codes] for _ in range(args.rounds)]
    rows = compared(*zip(*rounds, strict=True))
    facts = machine("cpu") | {"profile": args.profile, "before": args.before, "saes": SAES - 1}
    report(rows, list(rows[0]), facts | {"rounds": args.rounds}, args.json)


if __name__ == "__main__":
    main()
