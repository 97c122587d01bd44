"""The readers of a workbook folder, each a function from the folder to a digest of its answer."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.faulty_home import (
    HALF,
    LIVE,
    NOTEBOOK,
    PROFILE,
    SHORT,
    collect_half,
    killed_spec,
    lens_of,
    specs_of,
)
from helpers.folders import all_bytes
from helpers.fuzzed_text import forms
from helpers.workspaces import STREAMING, open_workspace
from saelib.activations.hub import ModelLoadError
from saelib.activations.live import StreamError
from saelib.activations.lm import LM
from saelib.activations.shards import StoreError
from saelib.activations.store import Store
from saelib.config import CorpusConfig, EvalConfig
from saelib.measure.descriptions import kept_descriptions
from saelib.run.check import check_profile
from saelib.run.jobs import damages, is_finished, jobs_of
from saelib.run.measuring import describe
from saelib.run.report import build_report
from saelib.run.workspace import Workspace
from saelib.sae.formats import load
from saelib.show.explore.notes import NOTES, Notes
from saelib.text.pages import read_pages

# The project's errors: a ValueError (ConfigError, FormatError, CorpusError, SealError, …) or one of
# these. Anything else is a fault.
ACCEPTED = (ValueError, OSError, StoreError, StreamError, ModelLoadError)
# What a user may change: another content is another input, as long as no result is taken for it.
# What may be missing: nothing was measured, written or described yet.
OPTIONAL = (
    r"/(twins|ablation|descriptions)/",
    r"notes\.json$",
    r"/figures/",
    r"/eval/",
    r"/stream/",
)
INPUTS = (
    *(r"^texts/", r"^formats/(?!saelib)", r"^notebooks/", r"^pages\.jsonl$"),
    r"notes\.json$",
)


def _digest(*values: object) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, torch.Tensor):
        return _bytes(value.detach().float().numpy())
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if isinstance(value, pd.DataFrame):
        return value.to_csv(float_format="%r").encode()
    if isinstance(value, dict):
        entries = sorted(value.items(), key=lambda entry: str(entry[0]))
        return b"".join(str(key).encode() + _bytes(inner) for key, inner in entries)
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value))
    return repr(value).encode()


def _workspace(profile: str = PROFILE) -> Workspace:
    return Workspace(profile, "cpu", EvalConfig(ce_tokens=256))


def _store(store: Store) -> str:
    index = np.arange(store.n_rows)
    rows = [store.rows(site, index) for site in store.sites]
    masks = [store.mask("ordinary", split) for split in ("train", "val", "test")]
    norms = [(store.norm(site), store.median_norm(site)) for site in store.sites]
    ids = (store.page_ids, store.page_titles, store.model_id, store.corpus_id, store.store_id)
    return _digest(rows, store.tokens, masks, norms, ids)


def store(home: Path) -> str:
    """All rows, tokens, masks and names of the store."""
    return _store(_workspace().store)


def live_store(home: Path) -> str:
    return _store(_workspace(LIVE).store)


def collect(home: Path) -> str:
    """Notebook 01 again: opens the store, or collects what is missing."""
    return _store(open_workspace(home, PROFILE).store)


def half(home: Path) -> str:
    """Going on with a collection that was killed."""
    return _store(collect_half(home))


def live(home: Path) -> str:
    """Another SAE trained on live rows."""
    ws = open_workspace(home, LIVE, STREAMING)
    spec = ws.spec("plain", 2, lam=0.9, **SHORT | {"tokens": 512})
    table = ws.train([spec], NOTEBOOK)
    return _digest(ws.load(spec).state_dict(), table)


def runs(home: Path) -> str:
    """Everything that lies in the folders of trained SAEs."""
    ws = _workspace()
    kept = []
    for spec in specs_of(ws):
        run = ws.run(spec)
        snapshots = [asdict(one) if hasattr(one, "__dict__") else one for one in run.snapshots]
        parts = (run.load().state_dict(), run.load().config.to_dict(), run.origin, snapshots)
        kept.append((*parts, run.history, run.events, run.row, run.pages))
    return _digest(kept)


def rerun(home: Path) -> str:
    """Training and measuring what is there, and the table."""
    ws = _workspace()
    table = ws.train(specs_of(ws), NOTEBOOK)
    return _digest(table, (ws.folder / "results.csv").read_bytes())


def resume(home: Path) -> str:
    """Going on with a training that was killed."""
    ws = _workspace()
    spec = killed_spec(ws)
    ws.train([spec], NOTEBOOK)
    return _digest(all_bytes(ws.run_folder(spec)), (ws.folder / "results.csv").read_bytes())


def live_run(home: Path) -> str:
    """The SAE trained on live rows."""
    ws = _workspace(LIVE)
    spec = ws.spec("plain", 2, lam=0.5, **SHORT)
    run = ws.run(spec)
    return _digest(ws.train([spec], NOTEBOOK), run.load().state_dict(), run.history, run.events)


def results(home: Path) -> str:
    """The table as notebooks read it."""
    return _digest(_workspace().results())


def described(home: Path) -> str:
    """The columns that say what runs are."""
    ws = _workspace()
    return _digest([describe(ws, ws.run_id(spec), spec) for spec in specs_of(ws)])


def reference(home: Path) -> str:
    """Clean and ablated losses."""
    ws = _workspace()
    kept = []
    for site in (2, 3):
        values = asdict(ws.reference(site, ws.evaluation))
        values.pop("file")
        kept.append(sorted(values.items()))
    return _digest(kept)


def measured_anew(home: Path) -> str:
    """Measuring an SAE again: the model, the store, its weights and the reference together."""
    ws = _workspace()
    spec = specs_of(ws)[0]
    (ws.run_folder(spec) / "metrics.json").unlink(missing_ok=True)
    return _digest(ws.train([spec], NOTEBOOK))


def lens(home: Path) -> str:
    """The index of an SAE's features, with all that is kept beside it."""
    one = lens_of(home)
    table = one.index.table
    latents = table["n_fired"].nlargest(5).index.tolist()
    records = [_record(one.index, latent) for latent in latents]
    tokens = [getattr(one.index.tokens, name) for name in one.index.tokens.COLUMNS]
    codes = one.index.codes
    kept = (one.kept_matches(), one.ablations(2), kept_descriptions(one))
    notes = Notes(_workspace().folder / NOTES).read(one.checksum)
    contexts = [one.contexts(latent) for latent in latents]
    code_parts = (codes.rows, codes.values, codes.starts)
    return _digest(
        table, records, tokens, one.index.tokens.titles, code_parts, kept, notes, contexts
    )


def _record(index, latent: int) -> list:
    record = index.latent(latent)
    lists = (record.token_types, record.promoted, record.suppressed, record.nearest)
    return [record.facts, record.histogram.counts, lists, record.companions]


def report(home: Path) -> str:
    """The report, page by page."""
    return _digest(all_bytes(build_report(PROFILE).parent))


def jobs(home: Path) -> str:
    """What the driver knows of the notebooks: parameters, and whether they are finished."""
    (job,) = jobs_of(PROFILE)
    state = (is_finished(job), [Path(line.partition(":")[0]).name for line in damages(job)])
    if not state[0]:
        print(f"{job.output}, {job.record}, {job.source}: not finished, runs again")  # as it says
    return _digest(job.values, state)


def model(home: Path) -> str:
    """The language model on a few tokens, and its tokenizer."""
    lm = LM.load(str(home / "model"), "float32", "cpu")
    ids = torch.arange(12)[None] % lm.vocab_size
    text = lm.tokenizer("w1 w2 w9")["input_ids"]
    return _digest(lm.capture(ids, [3]), lm.model(ids).logits, text, lm.tokenizer.decode([3, 4]))


def check(home: Path) -> str:
    """What `check` says of the profile."""
    return _told(PROFILE)


def check_live(home: Path) -> str:
    return _told(LIVE)


def check_half(home: Path) -> str:
    return _told(HALF)


def _told(profile: str) -> str:
    seen = check_profile(profile)
    return json.dumps([seen.damaged, seen.notices])


def _pages_of(name: str) -> Callable[[Path], str]:
    """A reader of one form of text."""
    number = list(forms()).index(name)
    source, path, *_ = forms()[name]

    def read(home: Path) -> str:
        folder = home / "texts" / f"{source}_{number}"
        cfg = CorpusConfig(source=source, path=str(folder / path), on_bad_line="skip")
        return _digest([(page.id, page.title, page.text) for page in read_pages(cfg)])

    return read


def parquet(home: Path) -> str:
    cfg = CorpusConfig(source="parquet", path=str(home / "texts" / "parquet" / "a.parquet"))
    return _digest([(page.id, page.title, page.text) for page in read_pages(cfg)])


FORMAT_FOLDERS = {
    "saelib": "saelib",
    "saelens": "saelens",
    "dictionary_learning": "dictionary_learning",
    "gemma_scope": "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
    "sparsify": "layers.5",
    "openmoss": "L7R-8x",
}


def _format_of(name: str) -> Callable[[Path], str]:
    """A reader of one library's layout."""

    def read(home: Path) -> str:
        sae = load(home / "formats" / FORMAT_FOLDERS[name])
        return _digest(sae.state_dict(), sae.config.to_dict())

    return read


PROBES: dict[str, Callable[[Path], str]] = {
    probe.__name__: probe
    for probe in (
        *(store, live_store, collect, half, live, runs, rerun, resume, live_run, results),
        *(described, reference, measured_anew, lens, report, jobs, model, parquet),
        *(check, check_live, check_half),
    )
}
PROBES |= {f"text {name}": _pages_of(name) for name in forms()}
PROBES |= {f"format {name}": _format_of(name) for name in FORMAT_FOLDERS}

# Those that write nothing.
READING = {
    *("store", "live_store", "runs", "results", "described", "reference", "lens", "model"),
    *(name for name in PROBES if name.startswith(("check", "text ", "format "))),
}

# Which readers use a file; the first pattern that fits its path decides.
USERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\.lock$|/\.locks/|/report/", ()),
    (r"^data/tiny/store/", ("check", "store", "collect")),
    (r"^data/live/store/", ("check_live", "live_store", "live")),
    (r"^data/half/store/", ("check_half", "half")),
    (r"^data/half/workspace.json", ("check_half", "half")),
    (r"^data/live/workspace.json", ("check_live", "live", "live_run")),
    (r"^data/tiny/workspace.json", ("check", "collect", "described", "reference")),
    (r"/(features|twins|ablation|descriptions)/|notes.json$", ("check", "lens")),
    (r"^data/tiny/saes/\w+/checkpoint", ("check", "resume")),
    (r"^data/tiny/saes/\w+/(train|seal)", ("check", "runs", "rerun", "resume")),
    (r"^data/tiny/saes/", ("check", "runs", "rerun")),
    (r"^data/live/saes/", ("check_live", "live_run")),
    (r"^data/live/stream/", ("check_live", "live")),
    (r"^data/tiny/eval/", ("check", "reference", "measured_anew")),
    (r"^data/live/eval/", ("check_live", "live")),
    (r"^data/tiny/results.csv", ("check", "results", "report")),
    (r"^data/live/results.csv", ("check_live", "live_run")),
    (r"^data/live/timings.csv", ("check_live", "live_run")),
    (r"^data/tiny/(verdicts|diagnostics|figures|timings)", ("check", "report")),
    (r"^data/tiny/notebooks/", ("check", "report", "jobs")),
    (r"^notebooks/", ("jobs", "report")),
    (r"^model/", ("model", "collect", "lens")),
    (r"^pages\.jsonl$", ("collect", "live")),
    (r"^texts/parquet/", ("parquet",)),
)


def probes_of(path: str) -> list[str]:
    """The readers that use a file, by its path below the folder; none of files that say nothing."""
    if match := re.match(r"^texts/(\w+?)_(\d+)/", path):
        return [f"text {list(forms())[int(match[2])]}"]
    for name, folder in FORMAT_FOLDERS.items():
        if path.startswith(f"formats/{folder}/"):
            return [f"format {name}"]
    return list(next((probes for pattern, probes in USERS if re.search(pattern, path)), ()))
