"""A profile's folder: its store, its trained SAEs, and the results table rebuilt from them.

    data/<profile>/workspace.json      which model and text the store was collected from
    data/<profile>/store/              activations
    data/<profile>/eval/site_02.json   clean and ablated losses, computed once a site
    data/<profile>/stream/<id>.jsonl   rows in each block of a live stream (see `stream`)
    data/<profile>/saes/<run_id>/      config.json, weights.safetensors, metrics.json, train.json, history.csv, …
    data/<profile>/results.csv         one row a trained SAE, sorted by run_id; timings.csv beside it

A run is named by the hash of its configuration, of the store and of `TRAINING_VERSION`, so that it is trained once,
whichever notebook asks first, and again where that version was raised; a killed run continues from its last checkpoint.

Where activations are streamed (`StreamConfig`), the store holds held-out pages and a sample of training contexts, from
which normaliser, probe and every measurement come as ever; SAEs train on live rows of all training pages.
"""

from __future__ import annotations

import csv
import fcntl
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from saelib import __version__
from saelib.activations.collect import collect
from saelib.activations.live import LiveBlocks, LiveRows, stored_contexts
from saelib.activations.lm import LM, resolve_site
from saelib.activations.moments import row_moments
from saelib.activations.rows import ShuffledRows
from saelib.activations.store import Store
from saelib.config import (
    CollectConfig,
    ConfigError,
    CorpusConfig,
    EvalConfig,
    StreamConfig,
    run_id,
    stable_hash,
)
from saelib.env import data_dir, headless
from saelib.files import read_json, write_json
from saelib.hardware import choose_device
from saelib.measure import metrics
from saelib.measure.columns import COLUMNS, NUMBERS, read_table
from saelib.measure.evaluate import evaluate
from saelib.measure.reference import SiteReference, site_reference
from saelib.ranks import ONE, Ranks
from saelib.run import costs
from saelib.sae.base import SAE, GatedSAE, build_sae, load_sae
from saelib.sae.sharding import Split
from saelib.sae.spec import Spec, make_spec
from saelib.sae.trainer import History, Run, Snapshot, TrainingDiverged, train_groups
from saelib.study import intervals
from saelib.text.assets import resolve_model
from saelib.text.contexts import Contexts, load_contexts
from saelib.versions import MEASURING_VERSION, STREAMING_VERSION, TRAINING_VERSION

PROBE_ROWS = 1024  # fixed ordinary validation rows on which gate snapshots are taken

CHECKPOINT = "checkpoint.safetensors"
TIMINGS = ("run_id", "stage", "seconds", "tokens_per_second", "resumed")


def log_time(
    folder: Path, stage: str, seconds: float, run: str = "", tokens: int = 0, resumed: bool = False
) -> None:
    """Append one row to `timings.csv` in `folder`."""
    path = folder / "timings.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = f"{tokens / seconds:.1f}" if tokens and seconds > 0 else ""
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(TIMINGS)
        writer.writerow([run, stage, f"{seconds:.3f}", rate, str(resumed).lower()])


class Workspace:
    """Everything a profile has on disk, and the two things notebooks do with it: collect, and train what is missing.

    With several ranks each makes the same calls. `over`: each rank trains whole SAEs of the "grid", or all train every
    SAE together, split by rows ("data") or by "latents"; either way rows and files are those of one process.
    """

    def __init__(
        self,
        profile: str,
        device: str = "auto",
        evaluation: EvalConfig | None = None,
        ranks: Ranks = ONE,
        over: Literal["grid", "data", "latents"] = "grid",
    ) -> None:
        self.profile, self.device_name, self.ranks, self.over = profile, device, ranks, over
        self.evaluation = evaluation or EvalConfig()
        self.folder = data_dir(profile)
        self.checkpoint_every = 200  # steps
        self.together = (
            1 if over == "latents" else 8
        )  # SAEs trained at once; other than 1, on a GPU as many as fit
        self._normalizers: dict[tuple[int, str, str], tuple[torch.Tensor, float]] = {}

    def measuring(self, evaluation: EvalConfig) -> Workspace:
        """This workspace with other metrics asked for; language model and store are shared, not loaded again."""
        other = copy(self)
        vars(other).update(evaluation=evaluation, lm=self.lm, store=self.store)
        return other

    # -- model, text, activations ----------------------------------------------------------------------------------

    def collect(
        self,
        model: str,
        corpus: CorpusConfig,
        sites: Sequence[int | str],
        cfg: CollectConfig,
        dtype: str = "auto",
        streaming: StreamConfig | None = None,
    ) -> Store:
        """Collect activations of `model` on `corpus` at `sites`, or open them if they are there.

        `streaming`: the store keeps held-out pages and a sample, and SAEs train on live rows (see `stream`).
        """
        streamed = {"stream": streaming.to_dict()} if streaming else {}
        self._take_up({"model": model, "dtype": dtype, "corpus": corpus.to_dict()} | streamed)
        start, lm, contexts = time.monotonic(), self.lm, self.contexts
        resolved = [lm.site(site) for site in sites]
        if streaming:
            self.identity["corpus_id"] = contexts.corpus_id
            contexts = contexts.select(stored_contexts(contexts, streaming))
        if not self.ranks.rank:
            write_json(
                self.folder / "workspace.json", self.identity
            )  # model, text and sites are there
        finished = (self.folder / "store" / "manifest.json").exists()
        resumed = (self.folder / "store").exists()
        self.store = collect(
            lm, contexts, resolved, self.folder / "store", cfg, not headless(), self.ranks
        )
        self.store.device = lm.device
        if not finished and not self.ranks.rank:
            log_time(
                self.folder,
                "collect",
                time.monotonic() - start,
                tokens=self.store.n_rows,
                resumed=resumed,
            )
        if streaming and not self.ranks.rank:
            print(self.live.summary())
        return self.store

    def _take_up(self, identity: dict[str, Any]) -> None:
        """Go on with this model and text; refuse to mix them with others that the profile was collected from."""
        path = self.folder / "workspace.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            known = read_json(path)
            for name in ("model", "dtype", "corpus", "stream"):
                have, asked = known.get(name), identity.get(name)
                if have != asked:
                    raise ConfigError(
                        f"{path}: {name} is {have}, now asked for {asked}; remove {self.folder} "
                        "or give the profile another name"
                    )
        for name in (
            "lm",
            "contexts",
            "n_layers",
            "live",
        ):  # what an earlier call that failed may have left
            vars(self).pop(name, None)
        self.identity = identity

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Model and corpus of this profile, as collected."""
        path = self.folder / "workspace.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: run notebook 01_collect with profile {self.profile!r} first"
            )
        return read_json(path)

    @cached_property
    def store(self) -> Store:
        """The activations; notebook 01 collects them."""
        if not (self.folder / "store" / "manifest.json").exists():
            raise FileNotFoundError(
                f"{self.folder / 'store'} holds no finished store: run notebook 01_collect with profile "
                f"{self.profile!r} first"
            )
        store = Store.open(self.folder / "store")
        store.device = choose_device(self.device_name)
        return store

    @cached_property
    def lm(self) -> LM:
        """The language model, loaded when first needed."""
        if headless():
            transformers_logging.disable_progress_bar()
        return LM.load(
            resolve_model(self.identity["model"]),
            dtype=self.identity["dtype"],
            device=self.device_name,
        )

    @cached_property
    def contexts(self) -> Contexts:
        """The text, cut into contexts."""
        return load_contexts(CorpusConfig.from_dict(self.identity["corpus"]), self.lm.tokenizer)

    @cached_property
    def live(self) -> LiveBlocks:
        """Where activations are streamed: blocks of rows for the streams of all sites."""
        cfg, text = StreamConfig.from_dict(self.identity["stream"]), self.contexts.corpus_id
        if text != self.identity["corpus_id"]:
            raise ConfigError(
                f"{self.folder}: collected from text {self.identity['corpus_id']}, which now is {text}"
            )
        return LiveBlocks(
            self.lm,
            self.contexts,
            self.store,
            cfg,
            self.folder / "stream" / f"{self.rows_id}.jsonl",
        )

    @property
    def rows_id(self) -> str:
        """What SAEs train on: the store's id; of live rows a hash of it, the whole text, and how they are streamed."""
        if "stream" not in self.identity:
            return self.store.store_id
        identity = self.identity["stream"], self.identity["corpus_id"]
        return stable_hash(self.store.store_id, *identity, STREAMING_VERSION)

    def reference(self, site: int) -> SiteReference:
        """Clean and ablated losses of a site, computed once."""
        cache = self.folder / "eval" / f"site_{site:02d}.json"
        return site_reference(self.lm, self.store, site, self.evaluation, cache)

    @cached_property
    def n_layers(self) -> int:
        """Blocks of the language model."""
        return self.lm.n_layers

    def site(self, name: int | str) -> int:
        """Resolve 2, "middle" or −2 to a site number."""
        return resolve_site(name, self.n_layers)

    # -- SAEs ------------------------------------------------------------------------------------------------------

    def spec(self, arm: str, site: int, **settings: Any) -> Spec:
        """`make_spec` at this store's width."""
        return make_spec(arm, site, self.store.d_model, **settings)

    def run_id(self, spec: Spec) -> str:
        """Name of a spec's run on these activations."""
        return run_id(spec.sae, spec.train, self.rows_id)

    def run_folder(self, run: Spec | str) -> Path:
        """Where the SAE, history and metrics of a spec, or of the run of that name, lie."""
        return self.folder / "saes" / (run if isinstance(run, str) else self.run_id(run))

    def train(self, specs: Sequence[Spec], notebook: str) -> pd.DataFrame:
        """Train and measure what is missing; returns one row a spec, in order, with column `arm` beside `COLUMNS`."""
        for spec in specs:
            self._check(spec)
        unique = {self.run_id(spec): spec for spec in specs}
        waiting = {
            run: spec
            for run, spec in unique.items()
            if not (self.run_folder(run) / "config.json").exists()
        }
        self.ranks.agree(
            "list of runs", [list(unique), list(waiting)]
        )  # all have listed them before any is done
        waves = self._waves(waiting)
        mine = waves[self.ranks.rank :: self.ranks.size] if self.over == "grid" else waves
        diverged: dict[str, TrainingDiverged] = {}
        silent, count = (
            headless() or self.ranks.rank > 0,
            sum(len(group) for wave in mine for group in wave),
        )
        with tqdm(total=count, desc="training", disable=silent) as bar:
            for wave in mine:  # what the others make is kept; a failure is raised below
                diverged |= self._train_wave(wave, waiting, notebook, bar)
                bar.update(sum(map(len, wave)))
        vars(self).pop("live", None)  # its buffers
        self.ranks.wait()
        trained = {
            run: spec
            for run, spec in unique.items()
            if (self.run_folder(run) / "config.json").exists()
        }
        self._measure_shared(
            {run: spec for run, spec in trained.items() if not self._measured(run)}
        )
        if len(trained) < len(unique):
            lost = {
                run: diverged.get(run, "given up by another rank")
                for run in unique
                if run not in trained
            }
            raise TrainingDiverged(
                "; ".join(f"{self.run_folder(run)}: {error}" for run, error in lost.items())
            )
        rows = [self._row(self.run_id(spec)) | {"arm": spec.arm} for spec in specs]
        return pd.DataFrame(rows, columns=[*COLUMNS, "arm"]).astype(NUMBERS)

    def results(self) -> pd.DataFrame:
        """`results.csv` as a table, with column `arm`."""
        path = self.folder / "results.csv"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: run notebooks 02 to 04 with profile {self.profile!r} first"
            )
        try:
            table = read_table(path)
        except ValueError as error:  # no table, a column missing, a word where a number stands
            raise ValueError(
                f"{path}: damaged ({error}); delete it and run notebook 02: it is built anew"
            ) from error
        return table.assign(arm=table["loss"])

    def load(self, spec: Spec) -> SAE | GatedSAE:
        """A trained SAE."""
        return load_sae(self.run_folder(spec))

    def history(self, spec: Spec) -> pd.DataFrame:
        """Training history: one row every `log_every` steps."""
        return pd.read_csv(self.run_folder(spec) / "history.csv")

    def events(self, spec: Spec) -> list[dict[str, Any]]:
        """What each resampling did, and how many of the revived are alive at the end."""
        return read_json(self.run_folder(spec) / "events.json")

    def snapshots(self, spec: Spec) -> list[Snapshot]:
        """Gate snapshots over training."""
        path = self.run_folder(spec) / "snapshots.safetensors"
        if not path.exists():
            return []
        t = load_file(path)
        return [
            Snapshot(int(step), int(tokens), t["fire_rate"][i], t["open"][i], t["b_gate"][i])
            for i, (step, tokens) in enumerate(zip(t["step"], t["tokens"], strict=True))
        ]

    def pages(self, run: Spec | str) -> pd.DataFrame:
        """Sums of each test page, for bootstraps: page_id, n, sse, sst, l0, ce_n, ce_id, ce_sae, ce_zero, ce_mean."""
        return pd.DataFrame(read_json(self.run_folder(run) / "metrics.json")["pages"])

    def write_results(self) -> Path:
        """Rebuild `results.csv` from the `metrics.json` of this store's runs, sorted by run_id."""
        runs = sorted(folder.name for folder in (self.folder / "saes").glob("*"))
        found = (self._row(run) for run in runs if self._current(run))
        path = self.folder / "results.csv"
        temporary = path.with_name(
            f"results.csv.{os.getpid()}.tmp"
        )  # two notebooks may write at once
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in found if row)
        os.replace(temporary, path)
        return path

    # -- inside ----------------------------------------------------------------------------------------------------

    def _check(self, spec: Spec) -> None:
        if spec.sae.site not in self.store.sites:
            raise ConfigError(
                f"site = {spec.sae.site}: the store of profile {self.profile!r} has {self.store.sites}"
            )
        cfg = spec.train
        if cfg.resample_at and cfg.resample_steps[0] * cfg.batch_size < cfg.dead_window:
            raise ConfigError(
                f"resample_at = {cfg.resample_at}: the first comes before dead_window = {cfg.dead_window} tokens have "
                "passed, so that nothing could be found dead"
            )
        rest = (cfg.steps - max(cfg.resample_steps, default=0)) * cfg.batch_size
        if cfg.resample_at and cfg.dead_window > rest:
            raise ConfigError(
                f"dead_window = {cfg.dead_window}: longer than the {rest} tokens after the last "
                "resampling, so that no revived latent could be found dead again"
            )

    def _row(self, run: str) -> dict[str, Any] | None:
        """The results row of a finished run; None where it is not measured yet."""
        return self._stored(run, "metrics.json").get("row")

    def _stored(self, run: str, name: str) -> dict[str, Any]:
        """A JSON file of a run; empty where there is none."""
        path = self.run_folder(run) / name
        return read_json(path) if path.exists() else {}

    def _measured(self, run: str) -> bool:
        """Whether a run is measured, and as this workspace measures."""
        made, wanted = self._stored(run, "metrics.json").get("evaluation"), self._measures()
        if made and not self.evaluation.ce_tokens:  # what has a loss too is measured
            made = made | {"ce_tokens": 0}
        return made == wanted

    def _measures(self) -> dict[str, Any]:
        """What a measurement depends on beside the SAE and the store."""
        return self.evaluation.to_dict() | {"version": MEASURING_VERSION}

    def _current(self, run: str) -> bool:
        """Whether a run was trained on this store (on another, other rows are ordinary) and by this code."""
        made = self._stored(run, "train.json")
        return made.get("store") == self.rows_id and made.get("code_version") == code_version()

    def normalizer(self, site: int, mode: str, tokens: str) -> tuple[torch.Tensor, float]:
        """(mean [d_model], scale) of a site: E‖scale·(x − mean)‖² = d_model over the chosen training tokens."""
        key = (site, mode, tokens)
        if key not in self._normalizers:
            moments = row_moments(
                self.store, site, np.flatnonzero(self.store.mask(tokens, "train"))
            )
            mean = moments.mean.float() if "center" in mode else torch.zeros(self.store.d_model)
            power = moments.mean_sq_dev if "center" in mode else moments.mean_sq
            self._normalizers[key] = (
                mean,
                (self.store.d_model / power) ** 0.5 if "scale" in mode else 1.0,
            )
        return self._normalizers[key]

    def stream(self, spec: Spec) -> ShuffledRows | LiveRows:
        """The rows a run trains on, in its order: training pages alone, ordinary tokens unless it asks for all.

        Live rows come in one order for all, `StreamConfig.seed`'s, so that SAEs of all seeds share their forwards.
        """
        cfg = spec.train
        if "stream" in self.identity:
            return LiveRows(self.live, spec.sae.site, cfg.tokens_mask, cfg.batch_size)
        index = np.flatnonzero(self.store.mask(cfg.tokens_mask, "train"))
        order = cfg.seed if cfg.data_seed < 0 else cfg.data_seed
        return ShuffledRows(self.store, spec.sae.site, index, cfg.batch_size, order)

    def _split(self, spec: Spec) -> Split:
        """How the ranks share the training of one SAE."""
        if self.ranks.size == 1 or self.over == "grid":
            return Split()
        return (
            Split(rows=self.ranks)
            if self.over == "data"
            else Split(ONE, self.ranks, spec.sae.n_latents)
        )

    def _waves(self, specs: dict[str, Spec]) -> list[list[list[str]]]:
        """Groups of runs that share a stream and its normaliser, at most `_at_once` SAEs at a time.

        Live, groups of all sites are trained side by side, so that one pass of the model feeds them all; those of
        another token mask have other rows in a block, and their turn later.
        """
        live, ranks = "stream" in self.identity, self.ranks.size if self.over == "grid" else 1
        together = min(
            self.ranks.first(self._at_once(specs)), -(-len(specs) // ranks)
        )  # no rank is left without

        def key(run: str) -> tuple[Any, ...]:
            sae, cfg = specs[run]
            order = cfg.seed if cfg.data_seed < 0 else cfg.data_seed
            return sae.site, sae.normalize, cfg.tokens_mask, cfg.batch_size, 0 if live else order

        if not live:
            return [[part] for group in _grouped(specs, key) for part in _parts(group, together)]
        masks = _grouped(specs, lambda run: specs[run].train.tokens_mask)
        return [_grouped(part, key) for runs in masks for part in _parts(runs, together)]

    def _at_once(self, specs: dict[str, Spec]) -> int:
        """SAEs to train at once: `together`, or on a GPU as many as its free memory holds, but one in any case."""
        device = choose_device(self.device_name)
        if device.type == "cpu" or self.together == 1 or not specs:
            return self.together
        buffers = (
            self.live.nbytes if "stream" in self.identity and self.live.device.type == "cuda" else 0
        )
        torch.cuda.empty_cache()
        free = 0.9 * torch.cuda.mem_get_info(device)[0] - buffers
        fit = [
            costs.at_once(free, s.sae.d_in, s.sae.n_latents, s.train.batch_size)
            for s in specs.values()
        ]
        return max(1, min(fit))

    def _train_wave(
        self, wave: list[list[str]], specs: dict[str, Spec], notebook: str, bar: Any
    ) -> dict[str, TrainingDiverged]:
        """Train groups of runs, each on one stream, and save them; returns those that diverged."""
        start, names, done = time.monotonic(), [run for group in wave for run in group], {}
        runs = {run: self._prepared(run, specs[run], notebook) for run in names}

        def show(i: int, row: dict[str, Any]) -> None:
            spec = specs[names[i]]
            at = f"{len(runs)} SAEs, {spec.arm} site {spec.sae.site} λ={spec.train.lam:g}: {row['step']}/"
            at += f"{spec.train.steps} FVU {row['fvu']:.3f} L0 {row['l0']:.1f} dead {row['dead_fraction']:.0%}"
            bar.set_postfix_str(at)

        groups = [([runs[run] for run in group], self.stream(specs[group[0]])) for group in wave]
        ahead = self.live.ahead if "stream" in self.identity else 0
        histories = train_groups(groups, self.checkpoint_every, show, ahead)
        for (run, trained), history in zip(runs.items(), histories, strict=True):
            if isinstance(history, History):
                state = trained.split.whole(trained.sae)
                if not trained.split.ranks.rank:
                    self._save(run, trained, history, state)
                done[run] = (
                    (trained.cfg.steps - history.resumed_at) * trained.cfg.batch_size,
                    history.resumed_at > 0,
                )
        per_token = (time.monotonic() - start) / max(1, sum(tokens for tokens, _ in done.values()))
        for run, (tokens, resumed) in done.items():
            if not runs[run].split.ranks.rank:
                log_time(self.folder, "train", per_token * tokens, run, tokens, resumed)
        return {run: found for run, found in zip(names, histories, strict=True) if run not in done}

    def _prepared(self, run: str, spec: Spec, notebook: str) -> Run:
        """A fresh SAE with its normaliser; what it is going to be lies in `train.json`."""
        (sae_cfg, cfg), folder, split = spec, self.run_folder(run), self._split(spec)
        folder.mkdir(parents=True, exist_ok=True)
        if not split.ranks.rank and not (folder / "train.json").exists():
            made = {
                "notebook": notebook,
                "train": cfg.to_dict(),
                "sae": sae_cfg.to_dict(),
                "store": self.rows_id,
            }
            write_json(folder / "train.json", made | {"code_version": code_version()})
        sae = build_sae(sae_cfg, torch.Generator().manual_seed(cfg.seed), split.own)
        sae.set_normalizer_(*self.normalizer(sae_cfg.site, sae_cfg.normalize, cfg.tokens_mask))
        probe = self._probe(sae_cfg.site) if cfg.snapshots else None
        return Run(sae.to(choose_device(self.device_name)), cfg, probe, folder / CHECKPOINT, split)

    def _probe(self, site: int) -> torch.Tensor:
        rows = np.flatnonzero(self.store.mask("ordinary", "val"))
        chosen = np.random.default_rng(0).choice(rows, min(PROBE_ROWS, len(rows)), replace=False)
        return self.store.rows(site, np.sort(chosen))

    def _save(
        self, run: str, trained: Run, history: History, state: dict[str, torch.Tensor]
    ) -> None:
        folder = self.run_folder(run)
        pd.DataFrame(history.table).to_csv(folder / "history.csv", index=False)
        write_json(folder / "events.json", [asdict(event) for event in history.events])
        if history.snapshots:
            snaps = history.snapshots
            tensors = {
                k: torch.stack([getattr(s, k) for s in snaps])
                for k in ("fire_rate", "open", "b_gate")
            }
            tensors |= {k: torch.tensor([getattr(s, k) for s in snaps]) for k in ("step", "tokens")}
            save_file(tensors, folder / "snapshots.safetensors")
        trained.sae.save(folder, state=state)
        _drop_checkpoints(folder)

    def _measure_shared(self, specs: dict[str, Spec]) -> None:
        """Measure runs, each by one rank, and write the table."""
        self.ranks.agree("list of runs to measure", list(specs))
        if (
            self.ranks.size > 1 and self.evaluation.ce_tokens
        ):  # or several would write a site's at once
            for site in sorted({spec.sae.site for spec in specs.values()})[
                self.ranks.rank :: self.ranks.size
            ]:
                self.reference(site)
            self.ranks.wait()
        self._measure({run: specs[run] for run in list(specs)[self.ranks.share(len(specs))]})
        self.ranks.wait()
        if not self.ranks.rank:
            self.write_results()
        self.ranks.wait()

    def _measure(self, specs: dict[str, Spec]) -> None:
        """Evaluate runs site by site, a few SAEs at once, and write their `metrics.json`."""
        by_site = _grouped(specs, lambda run: specs[run].sae.site)
        with tqdm(
            total=len(specs), desc="measuring", disable=headless() or self.ranks.rank > 0
        ) as bar:
            for runs in by_site:
                for part in _parts(runs, 16):
                    self._measure_part(part, specs)
                    bar.update(len(part))

    def _measure_part(self, runs: list[str], specs: dict[str, Spec]) -> None:
        start, site = time.monotonic(), specs[runs[0]].sae.site
        saes = {
            run: load_sae(self.run_folder(run)).to(choose_device(self.device_name)) for run in runs
        }
        reference = self.reference(site) if self.evaluation.ce_tokens else None
        for run, found in evaluate(
            saes, self.store, site, self.lm, reference, self.evaluation
        ).items():
            pages = found.pop("pages")
            row = self._describe(run, specs[run]) | found
            _drop_checkpoints(self.run_folder(run))  # where a kill came between SAE and its removal
            measured = {
                "evaluation": self._measures(),
                "row": {c: row.get(c) for c in COLUMNS},
                "pages": pages,
            }
            write_json(self.run_folder(run) / "metrics.json", measured)
        seconds = (time.monotonic() - start) / len(runs)
        for run in runs:
            log_time(self.folder, "evaluate", seconds, run, reference.n_targets if reference else 0)

    def _describe(self, run: str, spec: Spec) -> dict[str, Any]:
        """What a run is: its columns that are not measured, among all fields of its configurations."""
        cfg, site = spec.train, spec.sae.site
        made = read_json(self.run_folder(run) / "train.json")
        return {
            **spec.sae.to_dict(),
            **cfg.to_dict(),
            "run_id": run,
            "notebook": made["notebook"],
            "model_id": self.store.model_id,
            "corpus_id": self.identity.get("corpus_id", self.store.corpus_id),
            "code_version": made["code_version"],
            "layer_name": f"input of block {site}"
            if site < self.n_layers
            else f"output of block {site - 1}",
            "lambda": cfg.lam,
            "resample": "none"
            if not cfg.resample_at
            else " ".join(f"{share:g}" for share in cfg.resample_at),
            "ctx_len": self.identity["corpus"]["ctx_len"],
            "tokens_trained": cfg.steps * cfg.batch_size,
        }


def code_version() -> str:
    """The package's version and that of its training arithmetic, as the results table states them."""
    return f"{__version__}+training.{TRAINING_VERSION}"


def _grouped(runs: Iterable[str], key: Callable[[str], Any]) -> list[list[str]]:
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return list(groups.values())


def _drop_checkpoints(folder: Path) -> None:
    for path in folder.glob(CHECKPOINT.replace(".", "*.")):
        path.unlink()


def _parts(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


# -- matched L0 --------------------------------------------------------------------------------------------------------


def reach_l0(
    workspace: Workspace,
    notebook: str,
    make: Callable[..., Spec],
    lambdas: Mapping[tuple, Sequence[float]],
    target: float | int,
    max_extra: int = 3,
    refine: int = 0,
) -> dict[tuple, pd.DataFrame]:
    """Rows of λ curves, each with up to `max_extra` further λ trained while validation L0 does not bracket `target`.

    lambdas: the λ a curve begins with, by its key; `make(*key, lam)` is the spec of one of its SAEs. Curves go outwards
    together, one λ each a round. A bracketed one gets up to `refine` more λ between the two points nearest to the
    target, while their L0 are over a factor 2 apart.
    """
    wanted, rows, spent = {key: list(lams) for key, lams in lambdas.items()}, {}, Counter()
    while wanted:
        cells = [(key, lam) for key, lams in wanted.items() for lam in lams]
        new = workspace.train([make(*key, lam) for key, lam in cells], notebook)
        for key in wanted:
            mine = new[[k == key for k, _ in cells]]
            rows[key] = (
                pd.concat([rows[key], mine], ignore_index=True)
                if key in rows
                else mine.reset_index(drop=True)
            )
        following = {}
        for key in wanted:
            further = metrics.propose_lambda(
                zip(rows[key]["lambda"], rows[key]["l0_val"], strict=True), target
            )
            reached = len(bracket(rows[key], target)) > 0
            if further is not None and spent[key, reached] < (refine if reached else max_extra):
                spent[key, reached] += 1
                following[key] = [float(f"{further:.4g}")]
        wanted = following
    return rows


def bracket(rows: pd.DataFrame, target: float | int) -> list[float]:
    """The λ of a curve whose validation L0 are nearest to `target` on either side, ascending; empty where it has none.

    A collapsed SAE, L0 = 0, is no side: there is no logarithm to interpolate from.
    """
    alive = rows[rows["l0_val"] > 0].sort_values("l0_val")
    sides = alive[alive["l0_val"] <= target].tail(1), alive[alive["l0_val"] >= target].head(1)
    return sorted({float(side["lambda"].iloc[0]) for side in sides}) if all(map(len, sides)) else []


def seeds_at_l0(
    workspace: Workspace,
    notebook: str,
    make: Callable[..., Spec],
    start: Mapping[tuple, Sequence[float]],
    seeds: Sequence[int],
    target: float | int,
    max_extra: int = 3,
    refine: int = 0,
) -> dict[tuple, pd.DataFrame]:
    """`reach_l0` of every cell of `start` and seed, by (*cell, seed); `make(*cell, seed, lam)`.

    The first seed's curves begin at the λ of `start`, those of the others at the two λ between which the first one's
    has `target`, so that all are interpolated over the same stretch wherever that suffices.
    """
    first = {(*cell, seeds[0]): lams for cell, lams in start.items()}
    curves = reach_l0(workspace, notebook, make, first, target, max_extra, refine)
    near = {cell: bracket(curves[*cell, seeds[0]], target) or lams for cell, lams in start.items()}
    others = {(*cell, seed): near[cell] for cell in start for seed in seeds[1:]}
    return curves | reach_l0(workspace, notebook, make, others, target, max_extra, refine)


def samples_at_l0(
    workspace: Workspace, rows: pd.DataFrame, target: float, column: str = "fvu"
) -> Float64[np.ndarray, " draws"]:
    """`intervals.matched` of one curve's rows: `column` at validation L0 = target, before its replicates over pages."""
    return intervals.matched(
        [workspace.pages(run) for run in rows["run_id"]], rows["l0_val"], target, column
    )


def at_l0(rows: pd.DataFrame, target: float, column: str = "fvu") -> float | None:
    """`column` at validation L0 = target, interpolated along one curve; None where the curve does not reach it.

    FVU and λ are interpolated in log-log, any other column linearly over log L0 (DESIGN, "Matched L0").
    """
    log_y = column.startswith("fvu") or column == "lambda"
    return metrics.interpolate_matched_l0(rows["l0_val"], rows[column], target, log_y=log_y)
