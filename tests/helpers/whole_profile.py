"""A workbook whose notebooks go through every stage on a tiny model, in seconds.

Text, activations, SAEs with checkpoints, results.csv, an index of features with its twins and
ablations, an atlas, a figure, verdicts, and the report: `python -m saelib run --profile micro`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from nbformat.v4 import new_output
from papermill.engines import Engine, papermill_engines

from helpers.toy_workbook import write_notebook
from helpers.workspaces import write_inputs
from saelib.__main__ import main
from saelib.config import CollectConfig, CorpusConfig, EvalConfig, stable_hash
from saelib.env import root
from saelib.ranks import SINGLE_PROCESS, Ranks
from saelib.run.opening import subjects
from saelib.run.plain import without_controls
from saelib.run.workspace import Workspace
from saelib.show.explore.atlas import write_atlas
from saelib.show.style import save_figure
from saelib.study import notebooks
from saelib.study.f3_features_atlas import ATLAS
from saelib.study.finding import Finding, figure_path, record, record_abstract, record_table

PROFILE = "micro"
INPUTS = "inputs"  # below the home's parent: workspace.json and the notebooks name them
PARAMETERS = 'profile: str = "micro"  # set by the driver\n'
CODE = "from helpers.whole_profile import {name}\n{name}(profile)\n"
STAGES = {
    "01_collect": "collect",
    "02_train_sae": "train_and_judge",
    "06_features": "look_at_features",
}
RECIPE = {"n_latents": 48, "tokens": 1024, "batch_size": 64, "lr": 3e-3, "log_every": 4}
DEAD = {"resample_at": (0.3,), "dead_window": 256, "snapshots": 2}
ARMS = (
    ("plain", 1, {}),
    ("full", 2, DEAD),
    ("plain", 3, {"tokens_mask": "all"}),
    ("plain", 1, {"seed": 1}),
)


# -- the stages ------------------------------------------------------------------------------------


def opened(profile: str, ranks: Ranks = SINGLE_PROCESS) -> Workspace:
    """The profile's workspace, which saves checkpoints every fourth step."""
    ws = Workspace(profile, "cpu", EvalConfig(ce_tokens=128), ranks)
    ws.checkpoint_every, ws.together = 4, 3
    return ws


def collect(profile: str, ranks: Ranks = SINGLE_PROCESS) -> None:
    """Activations at three sites."""
    inputs = root().parent / INPUTS
    text = CorpusConfig("jsonl", str(inputs / "pages.jsonl"), ctx_len=16, contexts_per_page=3)
    stored = CollectConfig(shard_tokens=1024)
    with contextlib.redirect_stdout(None):  # says how much room there is
        opened(profile, ranks).collect(
            str(inputs / "model"), text, [1, "middle", -2], stored, dtype="float32"
        )


def train(profile: str, ranks: Ranks = SINGLE_PROCESS) -> pd.DataFrame:
    """SAEs of two architectures; their rows of results."""
    ws = opened(profile, ranks)
    specs = [ws.spec(arm, site, lam=0.5, **RECIPE, **more) for arm, site, more in ARMS]
    return ws.train(specs, "02_train_sae")


def train_and_judge(profile: str) -> None:
    """Also a table, a figure, a verdict and the abstract."""
    rows = train(profile)
    record_table(profile, "02_rows", rows[["arm", "site", "fvu"]])
    fig = Figure(figsize=(1, 1))
    fig.subplots().plot(opened(profile).results()["fvu"])
    print(save_figure(fig, "02_fvu", profile).name)
    words = ("A claim.", "A rule.", "undecided", {}, f"FVU {rows['fvu'].iloc[0]:.3f}.", "Heading")
    record(profile, "02_train_sae", [Finding("F4", *words, figure_path(profile, "02_fvu"))])
    record_abstract(profile, "02_train_sae", f"{len(rows)} SAEs.")


def look_at_features(profile: str) -> None:
    """Two indices, their matches, an ablation, and an atlas."""
    ws = opened(profile)
    rows = ws.results()
    lens = subjects(ws, rows[(rows["site"] == 1) & (rows["seed"] == 0)])[0].load()
    latent = int(lens.index.table["n_fired"].idxmax())
    print(len(lens.matches()), f"{lens.ablation(latent):.3f}")
    atlas = ws.folder / ATLAS / "site_01.html"
    print(write_atlas(atlas, lens.index, ws.lm.tokenizer, "plain", {"l0": 1.0}).name)


# -- the workbook ----------------------------------------------------------------------------------


def write_workbook(folder: Path) -> None:
    """Model, text and notebooks, which the homes of all trials share."""
    inputs = folder / INPUTS
    (inputs / "notebooks" / "profiles").mkdir(parents=True)
    write_inputs(inputs)
    for notebook, name in STAGES.items():
        write_notebook(inputs, notebook, PARAMETERS, CODE.format(name=name))
    (inputs / "notebooks" / "profiles" / f"{PROFILE}.yaml").write_text("common: {}\n")


def make_home(folder: Path, name: str) -> Path:
    """An empty workbook folder with the shared notebooks."""
    home = folder / name
    (home / "data").mkdir(parents=True)
    (home / "notebooks").symlink_to(folder / INPUTS / "notebooks")
    return home


# -- notebooks without kernels ---------------------------------------------------------------------


class InThisProcess(Engine):
    """Runs a notebook's cells here: a kernel takes seconds to start, and a kill is of all."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        """Called by papermill, which keeps the executed copy after each cell as ever."""
        scope = {"__name__": "__main__"}
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type == "code":
                nb_man.cell_start(cell, index)
                cls._run(cell, scope)
                nb_man.cell_complete(cell, index)
                if any(output.output_type == "error" for output in cell.outputs):
                    return

    @staticmethod
    def _run(cell, scope):
        printed = io.StringIO()
        cell.outputs = []
        cell.execution_count = 1
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.source, "cell", "exec"), scope)
        except Exception as error:
            kind = type(error).__name__
            trace = [f"{kind}: {error}"]
            cell.outputs = [new_output("error", ename=kind, evalue=str(error), traceback=trace)]
        if printed.getvalue():
            text = without_controls(printed.getvalue())
            cell.outputs.insert(0, new_output("stream", text=text))


def run_profile(home: Path) -> int:
    """`python -m saelib run --profile micro` in this process, without kernels; its exit status."""
    os.environ["SAELIB_HOME"] = str(home)
    papermill_engines.register(None, InThisProcess)
    notebooks.PARAMETERS.clear()  # these notebooks have parameters of their own
    return main(["run", "--profile", PROFILE])


def run_stages(home: Path) -> int:
    """The stages alone, as a script of a user's runs them beside the driver."""
    os.environ["SAELIB_HOME"] = str(home)
    collect(PROFILE)
    train(PROFILE)
    look_at_features(PROFILE)
    return 0


# -- what is compared ------------------------------------------------------------------------------

TIMES = re.compile(r"<h3>Time</h3>.*?</table></div>", re.DOTALL)
# Times differ between any two runs, and a lock's file names who held it when it was killed.


def tree(home: Path) -> dict[str, str]:
    """SHA-256 of every file of the profile, by path, without times: `timings.csv`, its seal in the
    notebooks' records, its table in the report. Locks by their names alone.
    """
    folder = home / "data" / PROFILE
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _content(folder, path) for path in files}


def _content(folder: Path, path: Path) -> str:
    name = str(path.relative_to(folder))
    if (
        name == "timings.csv"
        or path.suffix == ".lock"
        or path.name == ".lock"
        or path.parent.name == ".locks"
    ):
        return ""
    data = path.read_bytes()
    if name == "report/details.html":
        data = TIMES.sub("", data.decode()).encode()
    if path.parent.name == "notebooks" and path.suffix == ".json":
        record = json.loads(data)
        record["seals"].pop("timings.csv", None)
        record.pop("hash", None)  # of the times' seal too
        return stable_hash(record)
    return hashlib.sha256(data).hexdigest()


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What is missing, litter or other than expected, a line each."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"litter: {name}" for name in found if name not in expected]
    both = (name for name in expected if name in found)
    return lines + [f"differs: {name}" for name in both if found[name] != expected[name]]
