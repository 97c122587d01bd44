"""Reading shuffled batches, and what training many SAEs on one stream saves over each alone.

    python benchmarks/stream.py [--json PATH]

A store of random rows of SmolLM2's width is made in a temporary folder. First rows a second of the
stream alone, with its files in memory and dropped from it. Then eight λ together against eight runs
one after another, at bit-equal results: with the files in memory, dropped from memory before each
pass, and with rows that come from a live language model (random weights, SmolLM2's shape, one
forward to its middle), where each run alone needs forwards of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from collect import SMOLLM2, random_model
from harness import interleaved, machine, median, parser, report

from saelib.activations.lm import LM
from saelib.activations.rows import ShuffledRows
from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig, SAEConfig, TrainConfig
from saelib.sae import build_sae
from saelib.sae.group import Run, train_together
from saelib.text.contexts import Contexts

COLUMNS = ("name", "seconds_median", "rows_per_second", "ratio_to_alone", "bit_equal")
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def make_store(path: Path, n_rows: int, d: int) -> Store:
    """A store of one site with random rows, as `collect` writes it."""
    n = n_rows // 128
    contexts = Contexts(
        ids=np.zeros(n * 128, dtype=np.int32),
        offsets=np.arange(n + 1, dtype=np.int64) * 128,
        page=np.arange(n, dtype=np.int32),
        start=np.zeros(n, dtype=np.int32),
        page_ids=tuple(map(str, range(n))),
        page_titles=("",) * n,
        split=np.zeros(n, dtype=np.int8),
        bos=False,
        report={},
    )
    writer = StoreWriter(
        path, model_id="random", corpus_id="random", sites=[0], d_model=d, dtype=torch.bfloat16,
        compute_dtype=torch.bfloat16, contexts=contexts, config=CollectConfig(),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with writer:
        for shard in writer.missing:
            writer.write_shard(
                shard, {0: torch.randn(writer.n_rows(shard), d, generator=generator).bfloat16()}
            )
        writer.finish()
    return Store.open(path)


def drop_from_memory(path: Path) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for file in path.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Live:
    """A stream of rows straight from a language model: each batch is one forward to the site.

    Without `sample`, which only resampling and a `b_dec` begun from rows ask for.
    """

    def __init__(self, lm: LM, site: int, batch_size: int) -> None:
        self.lm, self.site, self.batch_size = lm, site, batch_size
        self.index, self.cursor = np.arange(batch_size), 0

    def __next__(self) -> tuple[torch.Tensor, np.ndarray]:
        ids = torch.randint(SMOLLM2.vocab_size, (self.batch_size // 128, 128),
                            generator=torch.Generator().manual_seed(self.cursor))  # fmt: skip
        self.cursor += self.batch_size
        return self.lm.capture(ids, [self.site])[self.site].reshape(self.batch_size, -1), self.index

    def seek(self, cursor: int) -> None:
        self.cursor = cursor


def runs(args, device: str) -> list[Run]:
    """Eight SAEs that differ in λ, as sparse as trained ones from the first step on."""
    out = []
    for lam in LAMBDAS:
        cfg = TrainConfig(
            tokens=args.steps * args.batch,
            batch_size=args.batch,
            lam=lam,
            lam_warmup=0.0,
            lr=1e-4,
            step="auto",
        )
        sae = build_sae(
            SAEConfig("sae", SMOLLM2.hidden_size, args.latents), torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            sae.b_enc.fill_(-2.2 * 0.2)  # about 1.4 % of random rows' codes are active
        out.append(Run(sae.to(device), cfg))
    return out


def compared(
    name: str, args, stream: Callable, before: Callable[[], None] = lambda: None
) -> list[dict]:
    """Together and alone, in turn; the weights of both must be bit-equal."""
    kept: dict[str, list[Run]] = {}

    def together() -> None:
        before()
        kept["together"] = runs(args, args.device)
        train_together([(kept["together"], stream())])

    def alone() -> None:
        kept["alone"] = runs(args, args.device)
        for run in kept["alone"]:
            before()
            train_together([([run], stream())])

    times = interleaved([alone, together], args.rounds, args.device, warmup=0)
    pairs = zip(kept["alone"], kept["together"], strict=True)
    equal = all(
        torch.equal(v, b.sae.state_dict()[k])
        for a, b in pairs
        for k, v in a.sae.state_dict().items()
    )
    rows = args.steps * args.batch * len(LAMBDAS)
    return [
        {
            "name": f"{name}, {how}",
            "seconds_median": median(found),
            "rows_per_second": rows / median(found),
            "ratio_to_alone": median(np.array(found) / np.array(times[0])),
            "bit_equal": equal,
        }
        for how, found in zip(
            (f"{len(LAMBDAS)} alone", f"{len(LAMBDAS)} together"), times, strict=True
        )
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--latents", type=int, default=2304)
    options.add_argument("--steps", type=int, default=100)
    options.set_defaults(rounds=3)
    args = options.parse_args()
    about = machine(args.device)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "store"
        make_store(path, args.rows, SMOLLM2.hidden_size)

        def stream() -> ShuffledRows:
            store = Store.open(path, verify=False)
            return ShuffledRows(store, 0, np.arange(store.n_rows), args.batch, seed=0)

        def read() -> None:
            rows = stream()
            for _ in range(args.steps):
                next(rows)

        def read_from_disk() -> None:
            drop_from_memory(path)
            read()

        times = interleaved([read, read_from_disk], args.rounds, args.device)
        rows = [
            {"name": f"stream alone, {how}", "seconds_median": median(t)}
            | {"rows_per_second": args.steps * args.batch / median(t)}
            for how, t in zip(("files in memory", "files dropped"), times, strict=True)
        ]
        rows += compared("files in memory", args, stream)
        rows += compared("files dropped", args, stream, lambda: drop_from_memory(path))
    lm = LM(random_model(SMOLLM2, args.device))
    rows += compared(
        "live model", args, lambda: Live(lm, SMOLLM2.num_hidden_layers // 2, args.batch)
    )
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
