"""A profile's model, text and activations: collected once by notebook 01, then opened by everyone.

    data/<profile>/workspace.json      which model and text the store was collected from
    data/<profile>/store/              activations
    data/<profile>/eval/site_02.json   clean and ablated losses, computed once per site
    data/<profile>/stream/<id>.jsonl   rows in each block of a live stream

Where activations are streamed (`StreamConfig`), the store holds held-out pages and a sample of
training contexts, from which normaliser, probe and every measurement come as ever; SAEs train on
live rows of all training pages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from saelib.activations.collect import collect
from saelib.activations.fingerprint import fingerprint, require_same_model
from saelib.activations.live import LiveBlocks, LiveRows, stored_contexts
from saelib.activations.lm import LM, resolve_site
from saelib.activations.moments import row_moments
from saelib.activations.rows import ShuffledRows
from saelib.activations.store import Store
from saelib.config import CollectConfig, ConfigError, CorpusConfig, EvalConfig, StreamConfig
from saelib.env import data_dir, headless
from saelib.files import remove_leftovers_of_the_dead
from saelib.hardware import choose_device
from saelib.measure.reference import SiteReference, site_reference
from saelib.ranks import SINGLE_PROCESS, Ranks
from saelib.run.identity import (
    FINGERPRINT,
    IDENTITY_FILE,
    ROWS_OF,
    STORE,
    read_identity,
    require_same_identity,
    require_same_store,
    rows_id,
    write_identity,
)
from saelib.run.results import log_time
from saelib.run.schedule import row_order
from saelib.sae.spec import Spec
from saelib.text.contexts import Contexts, load_contexts
from saelib.text.models import resolve_model

PER_COLLECTION = ("lm", "contexts", "n_layers", "live")  # cached; another model or text has others


class Collected:
    """What a profile was collected from, and the rows that came of it."""

    def __init__(self, profile: str, device: str = "auto", ranks: Ranks = SINGLE_PROCESS) -> None:
        self.profile = profile
        self.device_name = device
        self.ranks = ranks
        self.folder = data_dir(profile)
        self._normalizers: dict[tuple[int, str, str], tuple[torch.Tensor, float]] = {}
        if not ranks.rank:
            remove_leftovers_of_the_dead(self.folder)

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

        `streaming`: the store keeps held-out pages and a sample, and SAEs train on live rows (see
        `stream`). Raises ConfigError where the folder holds another model or text.
        """
        identity = {"model": model, "dtype": dtype, "corpus": corpus.to_dict()}
        if streaming:
            identity["stream"] = streaming.to_dict()
        self._take_up(identity)
        start = time.monotonic()
        contexts = self.contexts
        resolved = [self.lm.site(site) for site in sites]
        if streaming:
            self.identity["corpus_id"] = contexts.corpus_id
            contexts = contexts.select(stored_contexts(contexts, streaming))
        self._write_store(contexts, resolved, cfg, start)
        if streaming and not self.ranks.rank:
            print(self.live.summary())
        return self.store

    def _take_up(self, identity: dict[str, Any]) -> None:
        """Go on with this model and text; refuse to mix them with others that the profile was
        collected from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        require_same_identity(self.folder, identity)
        for name in PER_COLLECTION:  # what an earlier call that failed may have left
            vars(self).pop(name, None)
        self.identity = identity

    def _write_store(
        self, contexts: Contexts, sites: list[int], cfg: CollectConfig, start: float
    ) -> None:
        """Run the model over the contexts, or open what is finished; loading began at `start`."""
        folder = self.folder / "store"
        first_rank = not self.ranks.rank
        recorded = self._recorded()
        path = self.folder / IDENTITY_FILE
        require_same_model(recorded.get(FINGERPRINT), self.lm, path)
        self.identity = {FINGERPRINT: fingerprint(self.lm)} | recorded | self.identity
        self.identity[ROWS_OF] = {"model_id": self.lm.model_id, "corpus_id": contexts.corpus_id}
        if first_rank:  # model, text and sites are there
            write_identity(self.folder, self.identity)
        finished = (folder / "manifest.json").exists()
        resumed = folder.exists()
        self.store = collect(self.lm, contexts, sites, folder, cfg, not headless(), self.ranks)
        self.store.device = self.lm.device
        self.identity[STORE] = self.store.store_id
        if first_rank:
            write_identity(self.folder, self.identity)
        if first_rank and not finished:
            seconds = time.monotonic() - start
            rows = self.store.n_rows
            log_time(self.folder, "collect", seconds, tokens=rows, resumed=resumed)

    def _recorded(self) -> dict[str, Any]:
        """What an earlier collection left on record; empty without one."""
        if not (self.folder / IDENTITY_FILE).exists():
            return {}
        return read_identity(self.folder, self.profile)

    # -- model, text, activations ------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where SAEs are trained and measured."""
        return choose_device(self.device_name)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Model and text of this profile, as collected."""
        return read_identity(self.folder, self.profile)

    @cached_property
    def store(self) -> Store:
        """The activations; FileNotFoundError names the notebook that collects them."""
        folder = self.folder / "store"
        if not (folder / "manifest.json").exists():
            raise FileNotFoundError(
                f"{folder} holds no finished store: run notebook 01_collect with profile "
                f"{self.profile!r} first"
            )
        store = Store.open(folder)
        require_same_store(self.folder, self._recorded(), store.manifest)
        store.device = self.device
        return store

    @cached_property
    def lm(self) -> LM:
        """The language model, loaded when first needed."""
        if headless():
            transformers_logging.disable_progress_bar()
        path = resolve_model(self.identity["model"])
        lm = LM.load(path, dtype=self.identity["dtype"], device=self.device_name)
        require_same_model(self.identity.get(FINGERPRINT), lm, self.folder / IDENTITY_FILE)
        return lm

    @cached_property
    def contexts(self) -> Contexts:
        """The text, cut into contexts."""
        return load_contexts(CorpusConfig.from_dict(self.identity["corpus"]), self.lm.tokenizer)

    @property
    def is_streamed(self) -> bool:
        """Whether SAEs train on live rows."""
        return "stream" in self.identity

    @cached_property
    def live(self) -> LiveBlocks:
        """Where activations are streamed: blocks of rows for the streams of all sites.

        Raises ConfigError where the text is no longer the one collected from.
        """
        text = self.contexts.corpus_id
        if text != self.identity["corpus_id"]:
            raise ConfigError(
                f"{self.folder}: collected from text {self.identity['corpus_id']}, "
                f"which now is {text}"
            )
        cfg = StreamConfig.from_dict(self.identity["stream"])
        path = self.folder / "stream" / f"{self.rows_id}.jsonl"
        return LiveBlocks(self.lm, self.contexts, self.store, cfg, path)

    @property
    def rows_id(self) -> str:
        """Name of the rows that SAEs train on."""
        return rows_id(self.store.store_id, self.identity)

    @cached_property
    def n_layers(self) -> int:
        """Blocks of the language model."""
        return self.lm.n_layers

    def site(self, name: int | str) -> int:
        """Resolve 2, "middle" or −2 to a site number."""
        return resolve_site(name, self.n_layers)

    def reference(self, site: int, evaluation: EvalConfig) -> SiteReference:
        """Clean and ablated losses of a site, computed once."""
        cache = self.folder / "eval" / f"site_{site:02d}.json"
        return site_reference(self.lm, self.store, site, evaluation, cache)

    # -- rows to train on --------------------------------------------------------------------------

    def normalizer(self, site: int, mode: str, tokens: str) -> tuple[torch.Tensor, float]:
        """(mean [d_model], scale) of a site: E‖scale·(x − mean)‖² = d_model over the chosen
        training tokens. Raises ValueError, naming the site, where these are all equal.
        """
        key = (site, mode, tokens)
        if key not in self._normalizers:
            index = np.flatnonzero(self.store.mask(tokens, "train"))
            rows = f"site {site} ({tokens} training tokens)"
            moments = row_moments(self.store, site, index)
            self._normalizers[key] = moments.normalizer(mode, rows)
        return self._normalizers[key]

    def stream(self, spec: Spec) -> ShuffledRows | LiveRows:
        """The rows a run trains on, in its order: training pages alone, ordinary tokens unless it
        asks for all.

        Live rows come in one order for all, `StreamConfig.seed`'s, so that SAEs of all seeds share
        their forwards.
        """
        cfg = spec.train
        if self.is_streamed:
            return LiveRows(self.live, spec.sae.site, cfg.tokens_mask, cfg.batch_size)
        index = np.flatnonzero(self.store.mask(cfg.tokens_mask, "train"))
        return ShuffledRows(self.store, spec.sae.site, index, cfg.batch_size, row_order(spec))
