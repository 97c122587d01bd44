"""What a profile will take before it is run: tokens, disk, memory, work and time, from a store and streaming.

Counts come from the profile's parameters and the notebooks' own loops; where a search for an L0 decides, the expected
number is taken (`MORE`). Times are counts times rates: of short measurements on this machine at the profile's own
shapes, or shares of a stated number of operations a second. What is neither (figures, bootstraps, a kernel's start) is
as in the recorded runs of profiles default and full. Nothing is kept: a plan is made anew each time.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from saelib.activations.live import HELD
from saelib.activations.lm import LM, resolve_site
from saelib.activations.store import Store
from saelib.config import ConfigError, CorpusConfig, SAEConfig, TrainConfig
from saelib.env import data_dir, root
from saelib.files import read_json
from saelib.hardware import choose_device, choose_dtype
from saelib.measure.replaced_loss import next_token_losses, next_token_probs
from saelib.run import costs
from saelib.run.jobs import COLLECT, is_finished, jobs_of
from saelib.run.parameters import filled
from saelib.sae.base import ENCODER_INIT_NORM, build_sae
from saelib.sae.trainer import Trainer
from saelib.text.assets import resolve_model
from saelib.text.contexts import load_contexts
from saelib.text.pages import SPLITS, read_pages

LLAMA = "meta-llama/Llama-2-7b-hf"  # gated: planned by its published dimensions, which are `LlamaConfig`'s defaults
SHARES = np.array([0.7, 0.1, 0.2])  # of tokens in the splits, where pages are not at hand
PAGES = {
    "fever": (0, 100),
    "enwik8": (8571, 1832),
}  # pages, and tokens of one: assumed where no text is at hand
SAMPLE, CHARACTERS = 500, 4.2  # pages read of a text that lies here; characters a token
# Further λ a curve takes until its L0 is bracketed, and more with each `refine`, means of recorded runs: from a grid of
# three λ or more; from the two that bracket it at another length; in 04; in 05.
MORE = {"grid": (0.0, 0.3), "length": (0.7, 0.5), "resampling": (0.33, 0.35), "cause": (0.3, 0.0)}
ACTIVE = 48  # L0 at which a step is timed: the mean after λ has risen, in recorded runs
PARTS, TOGETHER = 16, 8  # SAEs measured at once, and on the CPU trained at once (`runs`)
STATED = {
    "forward": 0.55,
    True: 0.06,
    False: 0.1,
    "sums": 0.02,
}  # of a stated rate, as one H100 has: forwards, dense
# and sparse steps; assumed: sums in float64
DENSE = 4.5  # times the square root of the steps in which λ rises: steps with over a quarter open, in recorded runs
LAUNCH = 2.5e-3  # seconds a step beside its operations, there
HOST_RATE, SORTED = (
    5e11,
    (2e7, 1e9),
)  # operations of a host; numbers sorted a second, on a CPU, on a GPU: assumed
SHARE = 0.5  # of a product's rate, that diagnosis and pursuit reach: recorded runs
NOTEBOOK, EACH, FILES = (
    14.0,
    0.08,
    0.3,
)  # seconds a notebook, an SAE in its tables, an SAE's files: recorded runs
CARDS, USABLE, LIBRARIES = (
    (24, 80, 141),
    0.9,
    1.5e9,
)  # GB; share of a memory that can be filled; bytes of a process
CAUSES, DEEP, NOISE = (
    "05_layer_analysis",
    "depths",
    "shuffled dimensions",
)  # the latter two: not in results.csv
CHANGE = {  # what is too large -> what to do about it
    "store": "lower n_docs or contexts_per_page, name fewer sites, or set store_dtype to int8, or stream_tokens",
    "SAEs": "lower n_latents, or name fewer lambdas or seeds",
    "depths": "raise depth_step, or name the notebooks to run without 05",
    "memory": "lower n_latents, batch_size or batch_tokens",
}

Parameters = Mapping[str, Any]


class Group(NamedTuple):
    """SAEs of one kind that a notebook trains and measures."""

    what: str
    count: float  # expected, where an L0 is looked for
    sites: Sequence[int]  # spread evenly over them
    tokens: int  # training tokens of each; 0: measured again, not trained
    batch: int
    latents: int
    rising: float  # share of the steps in which λ rises
    gated: bool = False
    loss: bool = False  # next-token loss is measured too


def _sites(p: Parameters, name: str, layers: int) -> list[int]:
    return sorted({resolve_site(site, layers) for site in p[name]})


def _own(p: Parameters, times: float = 1.0) -> dict[str, Any]:
    tokens = round(times * p["tokens"] / p["batch_size"]) * p["batch_size"]
    return {
        "tokens": tokens,
        "batch": p["batch_size"],
        "latents": p["n_latents"],
        "rising": p["lam_warmup"],
    }


def _more(kind: str, p: Parameters) -> float:
    return MORE[kind][0] + MORE[kind][1] * p.get("refine", 0)


def train_sae(p: Parameters, layers: int) -> list[Group]:
    """Notebook 02: the sweep, the original recipe, four schedules at every rate, then five at the best over seeds."""
    at, where, own = _sites(p, "sites", layers), _sites(p, "schedule_sites", layers), _own(p)
    seeds, again, tried = len(p["seeds"]), len(p["schedule_seeds"]) - 1, 4 * len(where)
    return [
        Group("sweep", len(at) * seeds * len(p["lambdas"]), at, **own, loss=True),
        Group(
            "original recipe", len(at) * seeds, at, **own | {"rising": 3.0}, loss=True
        ),  # L0 stays in the hundreds
        Group("schedules, every rate", tried * len(p["schedule_lrs"]), where, **own),
        Group(
            "schedules, seeds", tried * again + len(where) * (again + 1), where, **own, loss=True
        ),
        Group("schedules, measured again", tried, where, **own | {"tokens": 0}, loss=True),
    ]


def train_gated(p: Parameters, layers: int) -> list[Group]:
    """Notebook 03: two Gated arms (the plain one is 02's), gates watched, three arms at other lengths."""
    at, own, seeds = _sites(p, "sites", layers), _own(p), len(p["seeds"])
    first = len(at) * seeds * (len(p["lambdas"]) + len(p["lambdas_two_term"]))
    curve, lengths = 2 + _more("length", p), [times for times in p["lengths"] if times != 1]
    return [
        Group("Gated arms", first, at, **own, gated=True, loss=True),
        Group(
            "further λ",
            3 * seeds * (len(at) + 1) * _more("grid", p),
            at,
            **own,
            gated=True,
            loss=True,
        ),
        Group("gates watched", 3 * seeds, at[len(at) // 2 :][:1], **own, gated=True, loss=True),
        *(
            Group(f"{t:g} x tokens", 3 * seeds * curve, at, **_own(p, t), gated=True)
            for t in lengths
        ),
    ]


def resampling(p: Parameters, layers: int) -> list[Group]:
    """Notebook 04: in two settings a curve for each of three arms, off and on, site and seed."""
    at = _sites(p, "resample_sites", layers)
    curves = 6 * len(at) * len(p["seeds"])
    begun = {
        name: len(p[f"{name}_lambdas"]) + _more("resampling", p) for name in ("normal", "dying")
    }
    return [
        Group(f"{name} setting", curves * n, at, **_own(p), gated=True) for name, n in begun.items()
    ]


def layer_analysis(p: Parameters, layers: int) -> list[Group]:
    """Notebook 05: eight coalitions and five more choices at two sites, longer and wider SAEs, noise, all depths."""
    at, seeds, split = _sites(p, "sites", layers), len(p["cause_seeds"]), len(p["split_seeds"])
    pair, choice = at[-2:], 2 * seeds * (len(p["cause_lambdas"]) + _more("cause", p))
    own = _own(p) | {
        "tokens": p["cause_tokens"],
        "batch": p["cause_batch"],
        "latents": p["cause_latents"],
    }
    deep = sorted({*range(0, layers + 1, p["depth_step"]), *at})
    return [
        Group("coalitions and choices", 16 * seeds + 11 * choice, pair, **own),
        Group("twice the latents", choice, pair, **own | {"latents": 2 * own["latents"]}),
        Group("twice the tokens", choice, pair, **own | {"tokens": 2 * own["tokens"]}),
        Group("items or selection", len(at) * split, at, **_own(p), loss=True),
        Group("longer", len(at) * split, at, **_own(p, p["longer"])),
        Group(
            "wider",
            len(at) * split,
            at,
            **_own(p) | {"latents": round(p["wider"] * p["n_latents"])},
        ),
        Group(NOISE, len(at) * (len(p["shuffled_lambdas"]) + 1), at, **_own(p)),
        Group(
            DEEP,
            len(deep) * len(p["depth_lambdas"]),
            deep,
            **_own(p) | {"tokens": p["depth_tokens"]},
            loss=True,
        ),
    ]


GROUPS = {
    "02_train_sae": train_sae,
    "03_train_gated": train_gated,
    "04_resampling": resampling,
    CAUSES: layer_analysis,
}


# --- text and model --------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """Tokens of a profile's text."""

    split: Sequence[float]  # train, val, test
    depths: float  # all, in the section on all depths, which takes fewer contexts of a page
    said: str  # how they are known


def text_of(p: Parameters, depth_contexts: int) -> Text:
    """Exact where the store or the embedded text is there; else from a sample of local pages, or assumed.

    `ConfigError` where the text is elsewhere and nothing says how many pages are taken.
    """
    cfg = filled(CorpusConfig, p, seed=p["corpus_seed"])
    folder = data_dir(p["profile"])
    known = read_json(folder / "workspace.json") if _stored(folder) else {}
    if known.get("corpus") == cfg.to_dict() and "stream" not in known:
        tokens = Store.open(folder / "store", verify=False).tokens
        page, split = tokens["page"], tokens["split"]
    elif cfg.source == "embedded":
        found = load_contexts(cfg, AutoTokenizer.from_pretrained(resolve_model(p["model"])))
        page = np.repeat(found.page, np.diff(found.offsets))
        split = found.split[page]
    else:
        return _estimated(cfg, depth_contexts)
    depths = np.minimum(np.bincount(page), depth_contexts * cfg.ctx_len).sum()
    return Text(np.bincount(split, minlength=3).tolist(), float(depths), "counted")


def _stored(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("workspace.json", "store/manifest.json"))


def _kept(tokens: float, cfg: CorpusConfig, contexts: int) -> float:
    """Tokens of a page in contexts, at most so many of these (0: all)."""
    whole, tail = divmod(tokens, cfg.ctx_len)
    kept = whole * cfg.ctx_len + tail * (tail >= cfg.min_ctx_len > 0)
    return min(kept, contexts * cfg.ctx_len) if contexts else kept


def _estimated(cfg: CorpusConfig, depth_contexts: int) -> Text:
    (pages, tokens), said = PAGES.get(cfg.source, (0, 500)), "assumed"
    each = [tokens]
    if cfg.path and Path(cfg.path).expanduser().exists():
        each = [
            len(page.text) / CHARACTERS
            for page in islice(read_pages(replace(cfg, n_docs=0)), SAMPLE)
        ]
        pages, said = len(each) if len(each) < SAMPLE else 0, f"as the first {len(each)} have"
    pages = cfg.n_docs or pages
    every, some = (
        sum(_kept(n, cfg, k) for n in each) for k in (cfg.contexts_per_page, depth_contexts)
    )
    if not pages * every:
        tell = f"{pages or 'unknown'} pages, with {every:.0f} tokens in contexts of {cfg.ctx_len} in the first {len(each)}"
        raise ConfigError(
            f"path = {cfg.path!r}: {tell}; set n_docs to plan with so many pages, or ctx_len, min_ctx_len"
        )
    times = pages / len(each)
    tell = f"{pages:,} pages of {np.mean(each):,.0f} tokens, {said}"
    return Text((SHARES * times * every).tolist(), times * some, tell)


def _size(path: Path) -> int:
    """Bytes of the weights and rows in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


def model_of(name: str) -> tuple[Any, str]:
    """Configuration of a model, and where it is from; `ConfigError` where it can be read nowhere."""
    folder = Path(resolve_model(name)).expanduser()
    if name == LLAMA:
        return LlamaConfig(), f"{name} by its published dimensions"
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else name), name
    except (OSError, ValueError) as error:
        tell = f"no dimensions to plan with ({str(error).splitlines()[0]}); expected a local folder or {LLAMA}"
        raise ConfigError(f"model = {name!r}: {tell}") from None


# --- rates -----------------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """Seconds of the pieces on some machine."""

    said: str
    block: float  # a token in a block
    head: float  # a token in head and loss
    step: Callable[[int, int, bool, bool], float]  # a training step: latents, rows, gated, dense
    sums: float  # operations a second of sums over rows, in float64, each of which counts twice


def stated(shape: costs.Shape, ctx_len: int, rate: float) -> Rates:
    """From a stated rate of matrix products, and the shares of it that one H100 reached."""
    if not rate > 0:
        raise ConfigError(f"rate = {rate!r}: expected operations a second, above 0, as 400e12")

    def step(n: int, rows: int, gated: bool, dense: bool) -> float:
        work = costs.step_flops(shape.d_model, n, rows, None if dense else ACTIVE, gated)
        return work / rate / STATED[dense] + LAUNCH

    work = [costs.forward_flops(shape, blocks, ctx_len, not blocks) for blocks in (1, 0)]
    said = f"at {rate:.3g} operations a second ({STATED['forward']:.0%} in forwards, {STATED[False]:.0%} in steps)"
    forward = [flops / rate / STATED["forward"] for flops in work]
    return Rates(said, *forward, step, STATED["sums"] * rate)


def measured(config: Any, ctx_len: int, device: torch.device, dtype: torch.dtype) -> Rates:
    """From short runs on this machine, at the shapes asked for, with random weights."""
    d = config.get_text_config().hidden_size
    x = torch.randn(2048, min(1024, d), dtype=torch.float64, device=device)
    sums = SHARE * 4 * x.numel() * x.shape[1] / _seconds(lambda: x.T @ x, device)
    said = f"at rates measured on {device}, {torch.get_num_threads()} threads"
    forward, step = (
        _forward_seconds(config, ctx_len, device, dtype),
        cache(partial(_step_seconds, device, d)),
    )
    return Rates(said, *forward, step, sums)


def _seconds(call: Callable[[], Any], device: torch.device, least: float = 0.4) -> float:
    """The least of a few calls: what else runs here can only add to it."""
    times, sync = [], torch.cuda.synchronize if device.type == "cuda" else lambda: None
    while len(times) < 2 or sum(times) < least:
        sync()
        start = time.perf_counter()
        call()
        sync()
        times.append(time.perf_counter() - start)
    return min(times)


def _forward_seconds(
    config: Any, ctx_len: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds a token of a block, and of head and loss: two blocks, on 1,024 tokens or about 1e11 operations."""
    with torch.device(device):
        some = type(config).from_dict(
            config.to_dict() | {"num_hidden_layers": 2, "layer_types": None}
        )
        lm = LM(AutoModelForCausalLM.from_config(some, dtype=dtype))
    fits = 1e11 / costs.forward_flops(costs.shape_of(config), 2, ctx_len)
    ids = torch.zeros(
        max(1, int(min(1024, fits)) // ctx_len), ctx_len, dtype=torch.long, device=device
    )
    stream = lm.capture(ids, [2])[2]
    clean, n = next_token_probs(lm.continue_from(2, stream, ids)), ids.numel()
    blocks = _seconds(lambda: lm.capture(ids, [2]), device, 1.5)
    head = _seconds(lambda: next_token_losses(lm.continue_from(2, stream, ids), ids, clean), device)
    return blocks / 2 / n, head / n


def _step_seconds(
    device: torch.device, d: int, latents: int, rows: int, gated: bool, dense: bool
) -> float:
    """Of a random SAE on normal rows, a row of its history included; a large one in part, and scaled."""
    weights, most = (3 * 10**6, 512) if device.type == "cpu" else (2**27, 8192)
    n, b = min(latents, weights // d), min(rows, most)
    sae, x = (
        build_sae(SAEConfig("gated" if gated else "sae", d, n)).to(device),
        torch.randn(b, d, device=device),
    )
    with (
        torch.no_grad()
    ):  # the encoder's products are normal: a share ACTIVE / n of them is above -bias
        quantile = float(torch.special.ndtri(torch.tensor(min(0.5, ACTIVE / n))))
        getattr(sae, sae.bias_names()[0]).fill_(ENCODER_INIT_NORM * quantile)
    how = {"loss": "full" if gated else "plain", "step": "dense" if dense else "auto"}
    trainer = Trainer(sae, TrainConfig(**how, lr=1e-9, tokens=b * 10**6, batch_size=b))
    trainer.density = min(0.5, ACTIVE / n)
    taken = trainer.cfg.log_every
    return (
        _seconds(lambda: [trainer.step_(x) for _ in range(taken)], device)
        / taken
        * latents
        / n
        * rows
        / b
    )


# --- the plan --------------------------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """What a plan is made from."""

    folder: Path
    first: Parameters  # those of notebook 01
    sites: Sequence[int]
    every: Sequence[Group]  # trained by notebooks that are not finished
    deep: Sequence[int]  # sites of all depths, where these are still to be collected
    shape: costs.Shape
    text: Text
    rates: Rates
    card: float  # bytes of the GPU's memory; 0 without one
    width: int  # bytes of a number of the model
    dtype: str  # of stored rows

    def forward(self, tokens: float, blocks: float, head: bool = False) -> np.ndarray:
        """Operations and seconds of tokens through some blocks."""
        work = costs.forward_flops(self.shape, blocks, self.first["ctx_len"], head)
        return tokens * np.array([work, blocks * self.rates.block + head * self.rates.head])


Plan = Mapping[str, Mapping[str, Any]]  # section -> what -> number or words


def make_plan(
    profile: str,
    names: Sequence[str] = (),
    overrides: Parameters | None = None,
    rate: float | None = None,
    force=False,
) -> Plan:
    """The plan of a profile's notebooks (`names`: of some) that are not finished; empty where none is left.

    `rate` states operations a second, of a card of 80 GB, instead of measuring. `ConfigError` for what `batch.plan`
    refuses, and for a model or text of which too little is known here.
    """
    jobs = jobs_of(profile, names, overrides)
    todo = [job.name for job in jobs if force or not is_finished(job)]
    of = {
        job.name: job.values for job in (*jobs_of(profile), *jobs)
    }  # model and text are 01's, whichever are asked
    first = of.get(COLLECT, {})
    if not todo or "source" not in first:
        return {}
    with chdir(root() / "notebooks"):  # where relative paths of models and texts begin
        (config, said), device = model_of(first["model"]), choose_device(first["device"])
        text = text_of(first, of[CAUSES]["depth_contexts"] if CAUSES in of else 0)
    shape, dtype, ctx_len = (
        costs.shape_of(config),
        choose_dtype(first["dtype"], device),
        first["ctx_len"],
    )
    if first["stream_tokens"] and (held := first["stream_held_out"] * ctx_len):
        text = text._replace(split=[text.split[0], *(min(n, held) for n in text.split[1:])])
    rates = (
        measured(config, ctx_len, device, dtype) if rate is None else stated(shape, ctx_len, rate)
    )
    card = (
        CARDS[1] * 1e9
        if rate
        else torch.cuda.mem_get_info(device)[1]
        if device.type == "cuda"
        else 0
    )
    stored = (
        str(dtype).removeprefix("torch.")
        if first["store_dtype"] == "auto"
        else first["store_dtype"]
    )
    groups = {name: GROUPS[name](of[name], shape.n_layers) for name in todo if name in GROUPS}
    every = [g for made in groups.values() for g in made if g.tokens]
    sites = _sites(first, "sites", shape.n_layers)
    deep = next((g.sites for g in every if g.what == DEEP), ())
    p = Profile(
        data_dir(profile),
        first,
        sites,
        every,
        deep,
        shape,
        text,
        rates,
        card,
        dtype.itemsize,
        stored,
    )
    out = {"model": {"name": said, "blocks": shape.n_layers, "d": shape.d_model}}
    out["tokens"] = {"known": text.said, "in all": sum(text.split)} | dict(
        zip(SPLITS, text.split, strict=True)
    )
    out["SAEs"] = {name: sum(g.count for g in made if g.tokens) for name, made in groups.items()}
    out["SAEs"]["tokens trained"] = sum(g.count * g.tokens for g in every)
    out |= {"disk, GB": disk_of(p), "memory, GB": memory_of(p)}
    stages = {name: stages_of(p, name, of[name], groups.get(name, ())) for name in todo}
    out |= {"operations": _summed(stages, 0), f"minutes {rates.said}": _summed(stages, 1)}
    stored = sum(
        float(cost[1]) for of in stages.values() for stage, cost in of.items() if stage != "stream"
    )
    out |= {f"a card of {size} GB": card_of(p, size, stored / 3600) for size in CARDS}
    return out | {"will not fit": misfits(out["disk, GB"], out["memory, GB"])}


def _summed(stages: Mapping[str, Mapping[str, Any]], which: int) -> dict[str, float]:
    """Operations (0) or minutes (1) of each notebook's stages, and in all."""
    out = {
        f"{name[:2]} {stage}": float(cost[which])
        for name, of in stages.items()
        for stage, cost in of.items()
    }
    return {k: v / 60**which for k, v in (out | {"in all": sum(out.values())}).items() if v}


def stages_of(p: Profile, name: str, of: Parameters, groups: Sequence[Group]) -> dict[str, Any]:
    """(operations, seconds) of a notebook's stages."""
    out = {}
    if name == COLLECT:
        out["collect"] = p.forward(_rows_stored(p), max(p.sites))
    if groups:
        out["train"] = sum(_training(p, g) for g in groups if g.tokens)
        out["stream"] = p.forward(
            bool(p.first["stream_tokens"]) * _streamed(p, groups, p.card), max(p.sites)
        )
        out["measure"] = sum(_measuring(p, g, of.get("ce_tokens", 0)) for g in groups)
    if name == CAUSES:
        out["depths"] = p.forward(p.text.depths, max(p.deep))
    return out | {"rest": (0.0, _rest(p, name, of, groups))}


def _training(p: Profile, g: Group) -> np.ndarray:
    """Steps, dense at first, and an SAE's files."""
    d, steps = p.shape.d_model, max(1, g.tokens // g.batch)
    dense = min(1.0, DENSE * (g.rising / steps) ** 0.5)
    mix = np.array([dense, 1 - dense])
    work = mix @ [
        costs.step_flops(d, g.latents, g.batch, active, g.gated) for active in (None, ACTIVE)
    ]
    seconds = mix @ [p.rates.step(g.latents, g.batch, g.gated, dense) for dense in (True, False)]
    return g.count * np.array([steps * work, steps * seconds + FILES])


def _measuring(p: Profile, g: Group, ce_tokens: int) -> np.ndarray:
    """Every validation and test row, at half a sparse step's time (recorded runs); the loss's tokens through the rest
    of the model: once an SAE, once a part for the clean loss, three times for a site's reference."""
    rows = {DEEP: p.text.depths * SHARES[1:].sum(), NOISE: 0}.get(g.what, sum(p.text.split[1:]))
    at, reference = len(g.sites), 3 * (g.what in ("sweep", DEEP))
    passes = g.loss * (g.count + at * (math.ceil(g.count / at / PARTS) + reference))
    step = p.rates.step(g.latents, g.batch, g.gated, False)
    tally = np.array([2 * p.shape.d_model * (g.latents + ACTIVE), step / g.batch / 2])
    return g.count * rows * tally + p.forward(
        passes * ce_tokens, p.shape.n_layers - np.mean(g.sites), head=True
    )


def _rest(p: Profile, name: str, of: Parameters, groups: Sequence[Group]) -> float:
    """A kernel's start, figures, tables and bootstraps; sums over rows; and pursuit, on the CPU in any case."""
    d, at, (train, val, test), work, host = p.shape.d_model, len(p.sites), p.text.split, 0.0, 0.0
    square = 2 * 2 * d * d * at  # a row's x xᵀ at each site; an operation in float64 is two
    if name == COLLECT:  # moments of all rows, two spectra, PCA, naive predictors
        work = square * (5 * train + val + 2 * test)
    elif name == "02_train_sae":  # PCA; one SAE with a shuffled decoder
        work = square * (train + test) + at * 2 * d * of["n_latents"] * test
    elif (
        name == CAUSES
    ):  # PCA, profile, predictors; the original recipe; sites of all depths; codes without an encoder
        split = len(of["split_seeds"])
        work = square * (train * (1 + split) + 2 * test) + at * 2 * d * of["n_latents"] * test
        work += 4 * d * d * len(p.deep) * p.text.depths
        host = at * split * _pursuit(d, of)
    noise = sum(g.count * g.tokens for g in groups if g.what == NOISE)
    computed = (
        work / p.rates.sums
        + host / (HOST_RATE if p.card else p.rates.sums)
        + noise * d / SORTED[p.card > 0]
    )
    return NOTEBOOK + EACH * sum(g.count for g in groups) + computed


def _pursuit(d: int, p: Parameters) -> float:
    """Codes without an encoder for one SAE: pursuit over five dictionaries, a round a product of a row with all items;
    items learned, each updated every 1,024 rows; lasso at 16 λ on 256 rows and at one on all, two products a step."""
    rows, learned, wider, n = p["split_tokens"], p["learn_tokens"], p["wider"], p["n_latents"]
    rounds = p["l0_target"] * (learned + rows * (4 + wider)) + 2 * (
        100 * rows + 800 * min(256, rows)
    )
    return 2 * d * n * (rounds + n * (learned / 512 + 2 + wider**2))


def disk_of(p: Profile) -> dict[str, float]:
    """GB to be written, less what lies there, and free; of a site, also in 8 bits, and of what streaming stores."""
    d, folder, deep = p.shape.d_model, p.folder, p.folder.with_name(f"{p.folder.name}-sites")
    rows, held = sum(p.text.split), sum(p.text.split[1:])
    of = {
        name: partial(costs.store_bytes, d=d, dtype=dtype)
        for name, dtype in (("own", p.dtype), ("int8", "int8"))
    }
    saes = sum(
        4 * g.count * costs.sae_weights(d, g.latents, g.gated) for g in p.every if g.what != NOISE
    )
    store = (
        0 if _stored(folder) else of["own"](_rows_stored(p), len(p.sites)) - _size(folder / "store")
    )
    need = {"store": store, "SAEs": saes - sum(_size(at / "saes") for at in (folder, deep))}
    need["depths"] = of["own"](p.text.depths, len(p.deep)) - _size(deep / "store") if p.deep else 0
    need = {part: max(0, size) for part, size in need.items()}
    free = shutil.disk_usage(next(f for f in (folder, *folder.parents) if f.exists())).free
    out = need | {"in all": sum(need.values()), "free": free, "a site": of["own"](rows, 1)}
    out |= {
        "a site in 8 bits": of["int8"](rows, 1),
        "store when streaming": of["own"](held, len(p.sites)),
    }
    return {k: float(v) / 1e9 for k, v in out.items()}


def _rows_stored(p: Profile) -> float:
    """Of a site: all, or held-out ones and a sample where the training rows are streamed."""
    sample = p.first["stream_contexts"] * p.first["ctx_len"]
    return min(
        sum(p.text.split),
        sum(p.text.split[1:]) + (sample if p.first["stream_tokens"] else p.text.split[0]),
    )


def memory_of(p: Profile) -> dict[str, float]:
    """GB held at once beside the SAEs (on a GPU, else the host) and on the host, and what there is."""
    out = {"model": p.width * costs.lm_weights(p.shape)}
    out["forward"] = costs.forward_bytes(p.shape, p.first["batch_tokens"], p.width)
    out["buffers"] = _buffers(p)
    many = 1 if p.card else TOGETHER  # on a GPU as many as fit, at least one
    sizes = [
        min(many, g.count) * costs.sae_weights(p.shape.d_model, g.latents, True) for g in p.every
    ]
    out["SAEs"] = costs.TRAINED * max(sizes, default=0)
    out["dense step"] = max((12 * g.batch * g.latents for g in p.every), default=0)
    out["device"] = (
        out["model"] + out["buffers"] + max(out["forward"], out["SAEs"] + out["dense step"])
    )
    table = sum(p.text.split) * (
        45 + 4 * len(p.sites)
    )  # ids, places, splits, an order and the next; norms
    out["host"] = LIBRARIES + table + (0 if p.card else out["device"])
    out["host has"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    out["device has"] = p.card or out["host has"]
    return {k: float(v) / 1e9 for k, v in out.items()}


def card_of(p: Profile, size: int, hours: float) -> dict[str, float]:
    """What a GPU of `size` GB holds, and what streaming repeats there, each call's SAEs in as few passes as fit."""
    fit = min((_fit(p, g, size * 1e9) for g in p.every), default=0)
    if not fit:
        return {"SAEs at once": 0}
    again = _streamed(p, p.every, size * 1e9)
    work, seconds = map(float, p.forward(again, max(p.sites)))
    out = {
        "SAEs at once": fit,
        "hours from a store, at that rate": hours,
        "hours streaming": hours + seconds / 3600,
    }
    return out | {
        "passes over the training text": again / p.text.split[0],
        "operations of the model": work,
    }


def _fit(p: Profile, g: Group, card: float) -> int:
    """SAEs of a group that a GPU of so much memory (0: the CPU) trains at once beside the language model."""
    beside = costs.forward_bytes(
        p.shape, p.first["batch_tokens"], p.width
    ) + p.width * costs.lm_weights(p.shape)
    beside += _buffers(p)
    return (
        costs.at_once(USABLE * card - beside, p.shape.d_model, g.latents, g.batch)
        if card
        else TOGETHER
    )


def _buffers(p: Profile) -> float:
    """Bytes of the live rows in memory."""
    return HELD * len(p.sites) * p.shape.d_model * p.width * p.first["stream_tokens"]


def _streamed(p: Profile, groups: Sequence[Group], card: float) -> float:
    """Tokens that the model runs over again to feed groups; those of all depths read a store in any case."""
    return sum(
        math.ceil(g.count / max(1, _fit(p, g, card))) * g.tokens for g in groups if g.what != DEEP
    )


def misfits(disk: Mapping[str, float], memory: Mapping[str, float]) -> dict[str, str]:
    """What will not fit, and the parameters that change it."""
    out, most = {}, max(("store", "SAEs", "depths"), key=disk.__getitem__)
    if disk["in all"] > disk["free"]:
        out["disk"] = (
            f"{disk['in all']:.4g} GB to write, {disk['free']:.4g} free; most is {most}: {CHANGE[most]}"
        )
    for where in ("device", "host"):
        need, there = memory[where], memory[f"{where} has"]
        if need > USABLE * there:
            out[f"{where} memory"] = f"{need:.3g} GB, {there:.3g} there: {CHANGE['memory']}"
    return out


def _shown(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:,.0f}"
        if 1e3 <= value < 1e10
        else f"{value:.3g}"
    )


def lines(plan: Plan) -> list[str]:
    """A plan in words, a section a line."""
    shown = {
        section: [f"{name} {_shown(value)}" for name, value in of.items()]
        for section, of in plan.items()
    }
    return [f"{name}: {', '.join(values)}" for name, values in shown.items() if values]


def brief(plan: Plan) -> Iterator[str]:
    """The few lines that `run` prints first; then `ConfigError` where the disk is too small for what is left to do."""
    shown = "tokens", "SAEs", "disk", "minutes", "will"
    yield from (f"plan: {line}" for line in lines(plan) if line.startswith(shown))
    if "disk" in plan.get("will not fit", {}):
        raise ConfigError(f"this profile does not fit on the disk: {plan['will not fit']['disk']}")
