r"""The original experiment at its real shape with random weights: how long each part takes.

    python benchmarks/experiment.py [--json PATH]      # on one GPU of 80 GB or more
    python benchmarks/experiment.py --shape tiny --tokens 8000 --steps 4 \
        --latents 64 --batch 64 --buffer 2048  # a CPU

Random weights of Llama-2-7B's shape read pages of FEVER's lengths. `collect` writes a store of
three sites, as notebook 01 does. `train` fits, on each site's rows, five λ each of the plain and
the Gated SAE on one stream: 30 SAEs, of which those of a site at a time. `stream` trains the same
without a store, its forwards and the training of as many SAEs at once as --together says, against
the forwards alone. `whole` is what follows for 10M tokens and 20M training tokens an SAE:
collection and 30 SAEs from the store, or streamed in as many passes as it takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
from collect import LLAMA2_7B, SMOLLM2, fever_lengths, linear_work, matmul_rate, random_model
from harness import machine, parser, report

from saelib.activations.collect import collect
from saelib.activations.live import LiveBlocks, LiveRows
from saelib.activations.lm import LM
from saelib.activations.moments import row_moments
from saelib.activations.rows import ShuffledRows
from saelib.activations.store import Store
from saelib.config import CollectConfig, SAEConfig, StreamConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.base import ENCODER_INIT_NORM
from saelib.sae.group import Run, train_together
from saelib.text.contexts import Contexts

TINY = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
)
SHAPES = {"llama2-7b": LLAMA2_7B, "smollm2": SMOLLM2, "tiny": TINY}
COLUMNS = (
    "name",
    "seconds",
    "tokens",
    "tokens_per_second",
    "share_of_matmul",
    "saes",
    "gb",
    "hours",
)
ARMS = {"plain": ("sae", "plain"), "full": ("gated", "full")}
SITES, ACTIVE, BLOCKS = (2, "middle", -2), 64, 3
WHOLE, TRAINED, SAES = 10_000_000, 20_000_000, 30  # tokens of the text; of an SAE's training; SAEs


def make_contexts(tokens: int, vocab: int) -> Contexts:
    """Random pages of FEVER's lengths, one context each, all of them for training."""
    lengths = fever_lengths(2 * tokens // 75)
    lengths = lengths[: int(np.searchsorted(lengths.cumsum(), tokens)) + 1]
    n, ends = len(lengths), np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    return Contexts(
        ids=np.random.default_rng(0).integers(vocab, size=ends[-1]).astype(np.int32),
        offsets=ends,
        page=np.arange(n, dtype=np.int32),
        start=np.zeros(n, dtype=np.int32),
        page_ids=tuple(map(str, range(n))),
        page_titles=("",) * n,
        split=np.zeros(n, dtype=np.int8),
        bos=False,
        report={},
    )


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    sync()
    start = time.perf_counter()
    out = call()
    sync()
    return time.perf_counter() - start, out


def make_runs(args: Any, store: Store, site: int, n: int, steps: int) -> list[Run]:
    """n SAEs of a site, plain and Gated in turn, normalised, as sparse as trained ones at once."""
    moments, out = row_moments(store, site, np.arange(store.n_rows)), []
    scale = (store.d_model / moments.mean_sq_dev) ** 0.5
    for i in range(n):
        arm = ("plain", "full")[i % 2]
        cfg = TrainConfig(
            loss=ARMS[arm][1],
            lam=1.0 + i // 2,
            lam_warmup=0.0,
            lr=1e-9,
            grad_clip=1.0,
            batch_size=args.batch,
            tokens=steps * args.batch,
        )
        sae = build_sae(
            SAEConfig(ARMS[arm][0], store.d_model, args.latents, site),
            torch.Generator().manual_seed(i),
        )
        sae.set_normalizer_(moments.mean.float(), scale)
        with (
            torch.no_grad()
        ):  # the encoder's products are near normal: a share ACTIVE / n of them is above -bias
            quantile = float(torch.special.ndtri(torch.tensor(min(0.5, ACTIVE / args.latents))))
            getattr(sae, sae.bias_names()[0]).fill_(ENCODER_INIT_NORM * quantile)
        out.append(Run(sae.to(args.device), cfg))
    return out


def trained_on(groups: list[tuple[list[Run], Any]], ahead: int = 0) -> None:
    for history in train_together(groups, 10**9, ahead=ahead):
        if isinstance(history, Exception):
            raise history


def measure(args: Any) -> list[dict[str, Any]]:
    shape, device, rows = SHAPES[args.shape], args.device, []
    lm = LM(random_model(shape, device), name=f"random-{args.shape}")
    contexts, cfg = (
        make_contexts(args.tokens, shape.vocab_size),
        CollectConfig(batch_tokens=args.batch_tokens),
    )
    sites = sorted({lm.site(site) for site in SITES})
    rate = matmul_rate(min(8192, 2 * shape.hidden_size), device, lm.dtype)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        lm.capture(
            torch.zeros(4, 128, dtype=torch.long, device=lm.device), sites
        )  # what the first call sets up
        seconds, store = timed(
            lambda: collect(lm, contexts, sites, Path(folder) / "store", cfg, False), device
        )
        share = contexts.n_tokens / seconds * linear_work(shape, max(sites)) / rate
        rows.append(rated("collect", seconds, contexts.n_tokens) | {"share_of_matmul": share})
        rows.append(trained_from_store(args, store))
        rows += streamed(args, lm, contexts, store)
    return rows + whole(args, {row["name"]: row for row in rows})


def rated(name: str, seconds: float, tokens: int) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }


def trained_from_store(args: Any, store: Store) -> dict[str, Any]:
    """All 30 SAEs, those of a site together.

    The first steps of a site are run once before and not counted.
    """
    seconds, index = 0.0, np.arange(store.n_rows)
    for site in store.sites:
        runs = make_runs(args, store, site, SAES // len(SITES), args.steps)
        for counted in (0, 1):
            stream = ShuffledRows(store, site, index, args.batch, seed=counted)
            seconds += (
                counted * timed(lambda r=runs, s=stream: trained_on([(r, s)]), args.device)[0]
            )
        del runs
    saes = SAES // len(SITES) * len(store.sites)
    return rated("train", seconds, saes * args.steps * args.batch) | {
        "saes": saes,
        "gb": peak(args.device),
    }


def streamed(args: Any, lm: LM, contexts: Contexts, store: Store) -> list[dict[str, Any]]:
    """Forwards of a few buffers alone, then the same with SAEs of all sites training on them."""
    alone, live = (LiveBlocks(lm, contexts, store, StreamConfig(args.buffer)) for _ in range(2))
    seconds, found = timed(lambda: [len(alone.block(i).rows) for i in range(BLOCKS)], args.device)
    out, steps = [rated("stream, forwards alone", seconds, sum(found))], sum(found) // args.batch
    each, groups = -(-args.together // len(store.sites)), []
    for site in store.sites:
        groups.append(
            (make_runs(args, store, site, each, steps), LiveRows(live, site, "all", args.batch))
        )
    seconds, _ = timed(lambda: trained_on(groups, live.ahead), args.device)
    about = {"saes": each * len(store.sites), "gb": peak(args.device)}
    return [*out, rated("stream", seconds, steps * args.batch) | about]


def whole(args: Any, of: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The experiment's hours, from these rates."""
    stored = (
        WHOLE / of["collect"]["tokens_per_second"]
        + SAES * TRAINED / of["train"]["tokens_per_second"]
    )
    passes = -(-SAES // of["stream"]["saes"])
    live = passes * TRAINED / of["stream"]["tokens_per_second"]
    return [
        {"name": "whole, from a store", "hours": stored / 3600},
        {"name": "whole, streamed", "hours": live / 3600},
    ]


def peak(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--shape", choices=sorted(SHAPES), default="llama2-7b")
    options.add_argument(
        "--tokens", type=int, default=524_288, help="of the text that is collected"
    )
    options.add_argument("--batch-tokens", type=int, default=16_384)
    options.add_argument("--latents", type=int, default=16_384)
    options.add_argument("--batch", type=int, default=4096)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--buffer", type=int, default=65_536, help="tokens of the shuffle buffer")
    options.add_argument(
        "--together", type=int, default=9, help="SAEs that are streamed to at once"
    )
    args = options.parse_args()
    about = machine(args.device)
    report(measure(args), COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
