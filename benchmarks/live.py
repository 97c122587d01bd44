"""Live rows against a store: quality at equal tokens, and host memory as the documents grow.

    python benchmarks/live.py --part quality --json PATH
        [--sites 2 middle -2] [--arms plain full] [--seeds 0 1 2]
    python benchmarks/live.py --part memory --json PATH [--documents 2000 20000]

quality: SAEs of a profile's recipe, one λ an architecture, each trained on a store of its text and
on live rows of it, in folders of their own (`data/<profile>-live-store`, `…-live-<buffer>-<seed>`).
FVU and L0 over ordinary test tokens, mean and extremes over seeds. `within`: the means of the FVU
differ by no more than the seeds of one of the two do. What is trained already is not trained again,
and rows of an earlier call stay in the file.

memory: the peak resident memory of a process that cuts a text into contexts, stores a sample of
fixed size and trains on live rows, by the number of documents (pieces of the embedded text, each
its own), at equal training tokens.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report
from recipe import recipe_of
from summary import LIVE

from saelib.config import CollectConfig, CorpusConfig, EvalConfig, StreamConfig
from saelib.env import data_dir
from saelib.hardware import choose_device
from saelib.run.parameters import filled
from saelib.run.profiles import resolve_profile
from saelib.run.source_notebooks import parameters
from saelib.run.workspace import Workspace
from saelib.sae.spec import ARMS
from saelib.text.pages import read_pages

MEMORY = ("name", "corpus_tokens", "tokens_trained", "peak_mb", "ratio_to_first")
KEYS = ("name", "site", "buffer")  # of a row
WORDS = 110  # of a document: one context


def workspace(profile: str, streaming: StreamConfig | None, together: int) -> Workspace:
    """A profile's model, text and sites, stored or live."""
    source, given = next(
        (path, v) for path, v in resolve_profile(profile).items() if "collect" in path.stem
    )
    values = parameters(source) | given
    corpus = filled(CorpusConfig, values, seed=values["corpus_seed"])
    folder = f"{streaming.buffer_tokens}-{streaming.seed}" if streaming else "store"
    ws = Workspace(f"{profile}-live-{folder}", evaluation=EvalConfig(ce_tokens=0))
    ws.together = together
    config = filled(CollectConfig, values, dtype=values["store_dtype"])
    ws.collect(values["model"], corpus, values["sites"], config, values["dtype"], streaming)
    return ws


def compared(
    cells: list[tuple[str, int]],
    live: list[Workspace],
    store: Workspace,
    seeds: list[int],
    recipe: dict[str, Any],
) -> list[dict[str, Any]]:
    """A row for each (arm, site).

    `live` has one workspace per seed, since a store gives each seed an order of its own.
    """
    lams, tables = {"plain": recipe.pop("lam"), "full": recipe.pop("lam_full")}, {}
    for name, spaces in (("store", [store] * len(seeds)), ("live", live)):
        made = [
            ws.train([ws.spec(a, s, lam=lams[a], seed=k, **recipe) for a, s in cells], "live")
            for ws, k in zip(spaces, seeds, strict=True)
        ]
        tables[name] = pd.concat(made)
    rows = []
    for arm, site in cells:
        row: dict[str, Any] = {"name": arm, "site": site, "lambda": lams[arm], "seeds": len(seeds)}
        for name, table in tables.items():
            mine = table[(table["arm"] == arm) & (table["site"] == site)]
            fvu = {"": mine["fvu"].mean(), "_lo": mine["fvu"].min(), "_hi": mine["fvu"].max()}
            row |= {f"fvu_{name}{part}": float(value) for part, value in fvu.items()}
            row[f"l0_{name}"] = float(mine["l0"].mean())
        spread = max(row[f"fvu_{name}_hi"] - row[f"fvu_{name}_lo"] for name in tables)
        rows.append(row | {"within": abs(row["fvu_live"] - row["fvu_store"]) <= spread})
    return rows


def quality(args: Any) -> list[dict[str, Any]]:
    recipe = recipe_of(args.profile)
    del recipe["ce_tokens"]
    store = workspace(args.profile, None, args.together)
    streaming = [StreamConfig(args.buffer, args.sample, seed=seed) for seed in args.seeds]
    live = [workspace(args.profile, cfg, args.together) for cfg in streaming]
    sites = [store.site(int(s) if s.lstrip("-").isdigit() else s) for s in args.sites]
    cells = [(arm, site) for site in sites for arm in args.arms]
    rows = compared(
        cells, live, store, args.seeds, recipe | {"lam": args.lam, "lam_full": args.lam_full}
    )
    return [row | {"buffer": args.buffer} for row in rows]


def write_documents(path: Path, n: int) -> None:
    """So many pieces of the embedded text, each with a number of its own in front, as JSONL."""
    pages = [page.text.split() for page in read_pages(CorpusConfig())]
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            words = pages[i % len(pages)]
            start = 97 * i % max(1, len(words) - WORDS)
            piece = (words[start:] + pages[(i + 1) % len(pages)])[:WORDS]
            file.write(json.dumps({"text": f"Document {i}. {' '.join(piece)}"}) + "\n")


def trained_in_a_child(folder: str, tokens: int) -> None:
    """Collect and train on live rows in this process; prints what it took."""
    ws = Workspace(folder, evaluation=EvalConfig(ce_tokens=0))
    corpus = CorpusConfig(source="jsonl", path=str(ws.folder / "documents.jsonl"))
    streaming = StreamConfig(buffer_tokens=16_384, sample_contexts=128, held_out_contexts=128)
    ws.collect("embedded", corpus, [2, "middle"], CollectConfig(), streaming=streaming)
    shape = {"n_latents": 2304, "tokens": tokens, "lam": 1.3}
    ws.train([ws.spec("plain", site, **shape) for site in (2, ws.site("middle"))], "live")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        json.dumps(
            {"corpus_tokens": ws.contexts.n_tokens, "tokens_trained": tokens, "peak_mb": peak}
        )
    )


def memory(args: Any) -> list[dict[str, Any]]:
    rows = []
    for n in args.documents:
        folder = f"live-memory-{n}"
        shutil.rmtree(data_dir(folder), ignore_errors=True)
        write_documents(data_dir(folder) / "documents.jsonl", n)
        child = [
            sys.executable,
            __file__,
            "--part",
            "memory",
            "--child",
            folder,
            "--tokens",
            str(args.tokens),
        ]
        said = subprocess.run(
            child, check=True, capture_output=True, text=True
        ).stdout.splitlines()[-1]
        rows.append({"name": f"{n:,} documents", **json.loads(said)})
        rows[-1]["ratio_to_first"] = rows[-1]["peak_mb"] / rows[0]["peak_mb"]
        print(rows[-1], flush=True)
    return rows


def merged(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file, each with its own machine; this call's replace earlier ones."""
    known = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else []
    new = {tuple(row.get(k) for k in KEYS) for row in rows}
    kept = [row for row in known if tuple(row.get(k) for k in KEYS) not in new]
    return kept + [row | {"machine": machine(choose_device("auto").type)} for row in rows]


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--part", choices=("quality", "memory"), required=True)
    options.add_argument("--profile", default="default")
    options.add_argument(
        "--arms", nargs="+", default=["plain", "full"], choices=[a for a in ARMS if a != "two_term"]
    )
    options.add_argument(
        "--sites", nargs="+", default=["2", "middle", "-2"], help="a number, or middle"
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--lam", type=float, default=1.3, help="of the plain SAE")
    options.add_argument("--lam-full", type=float, default=2.08)
    options.add_argument("--buffer", type=int, default=131_072, help="tokens of the shuffle buffer")
    options.add_argument(
        "--sample", type=int, default=1024, help="training contexts that are stored"
    )
    options.add_argument("--together", type=int, default=9)
    options.add_argument("--documents", nargs="+", type=int, default=[2000, 20_000])
    options.add_argument(
        "--tokens", type=int, default=16_384, help="training tokens of the memory part"
    )
    options.add_argument("--child", default="", help="the memory part's own use")
    args = options.parse_args()
    if args.child:
        trained_in_a_child(args.child, args.tokens)
        return
    rows = merged(args.json, quality(args) if args.part == "quality" else memory(args))
    report(rows, LIVE if args.part == "quality" else MEMORY, {}, args.json)


if __name__ == "__main__":
    main()
