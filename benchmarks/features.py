"""An index of all features of an SAE: build time against the bare encoder product.

    python benchmarks/features.py [--json PATH] [--latents 2304 32768] [--rows 30000] [--rounds 1]

Random rows and weights of SmolLM2's shape; the encoder's bias is set so that L0 is about 32. The
unit is the time of x W_enc over all rows, float32, in the build's batches, timed in turn with it.
The vocabulary goes through a random unembedding of 49,152 tokens.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleaved, machine, median, parser, report

from saelib.activations.lm import LM
from saelib.activations.store import Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig, SAEConfig
from saelib.measure.features import IndexOptions, build_index
from saelib.sae import Autoencoder, build_sae
from saelib.text.contexts import Contexts

D, LENGTH, SITE = 576, 128, 1
COLUMNS = ("name", "n_latents", "n_rows", "l0", "seconds_median", "ratio_to_encoder")


def options() -> ArgumentParser:
    out = parser(__doc__.splitlines()[0])
    out.add_argument("--latents", type=int, nargs="+", default=[2304, 32768])
    out.add_argument("--rows", type=int, default=30_000)
    out.add_argument("--l0", type=float, default=32.0)
    out.add_argument("--vocabulary", type=int, default=49_152)
    out.set_defaults(rounds=1, device="cpu")
    return out


def random_lm(vocabulary: int) -> LM:
    """One block: of the model, a build sees the final norm and the unembedding."""
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=D,
        intermediate_size=D,
        vocab_size=vocabulary,
        num_attention_heads=9,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LM(LlamaForCausalLM(config), name="random")


def random_store(path: Path, lm: LM, n_rows: int) -> Store:
    """Test pages of ten contexts, rows of independent normal values, tokens by Zipf's law."""
    n_contexts = max(n_rows // LENGTH, 1)
    rng = np.random.default_rng(0)
    pages = -(-n_contexts // 10)
    contexts = Contexts(
        ids=(rng.zipf(1.3, n_contexts * LENGTH) % lm.vocab_size).astype(np.int32),
        offsets=np.arange(n_contexts + 1) * LENGTH,
        page=np.repeat(np.arange(pages, dtype=np.int32), 10)[:n_contexts],
        start=np.zeros(n_contexts, dtype=np.int32),
        page_ids=tuple(map(str, range(pages))),
        page_titles=tuple(map(str, range(pages))),
        split=np.where(np.arange(pages) == 0, 0, 2).astype(np.int8),  # sinks need training rows
        bos=False,
        report={},
    )
    cfg = CollectConfig()
    identity = {"model_id": lm.model_id, "corpus_id": contexts.corpus_id, "sites": (SITE,)}
    generator = torch.Generator().manual_seed(0)
    with StoreWriter(
        path, **identity, d_model=D, dtype="bfloat16", contexts=contexts, config=cfg
    ) as writer:
        for shard in writer.missing:
            x = torch.randn(writer.n_rows(shard), D, generator=generator)
            writer.write_shard(shard, {SITE: x.to(writer.row_dtype)})
        writer.finish()
    return Store.open(path)


def random_sae(n_latents: int, x: torch.Tensor, l0: float) -> Autoencoder:
    """Latents of different densities, whose bias gives them about that L0 together."""
    config = SAEConfig(d_in=D, n_latents=n_latents, site=SITE, normalize="none")
    sae = build_sae(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    weight = torch.logspace(0, -3, n_latents)
    density = (l0 * weight / weight.sum()).clamp_max(0.5)
    columns = (x @ sae.W_enc).sort(dim=0, descending=True).values
    place = (density * len(x)).long().clamp(max=len(x) - 1)
    sae.b_enc -= columns[place, torch.arange(n_latents)]
    return sae


def encoder(sae: Autoencoder, store: Store, rows: np.ndarray, batch: int) -> Callable[[], None]:
    x = store.rows(SITE, rows[:batch])
    out = torch.empty(len(x), sae.config.n_latents)

    def run() -> None:
        for start in range(0, len(rows), batch):
            n = min(batch, len(rows) - start)
            torch.mm(x[:n], sae.W_enc, out=out[:n])

    return run


def rows_of(args: Namespace, folder: Path) -> list[dict[str, Any]]:
    lm = random_lm(args.vocabulary)
    store = random_store(folder / "store", lm, args.rows)
    test = np.flatnonzero(store.tokens["split"] == 2)
    found = []
    for n_latents in args.latents:
        sae = random_sae(n_latents, store.rows(SITE, test[:4096]), args.l0)
        index = folder / f"index_{n_latents}"

        codes: list[float] = []

        def build(sae: Autoencoder = sae, index: Path = index, codes: list[float] = codes) -> None:
            opened = build_index(sae, store, lm, index)
            codes.append(opened.table["n_fired"].sum() / opened.manifest["n_ordinary"])

        calls = (encoder(sae, store, test, IndexOptions().batch), build)
        times = [median(row) for row in interleaved(calls, args.rounds, "cpu", warmup=0)]
        for name, seconds in zip(("encoder product", "build"), times, strict=True):
            values = (name, n_latents, len(test), codes[0], seconds, seconds / times[0])
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def main() -> None:
    args = options().parse_args()
    about = machine("cpu")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = rows_of(args, Path(folder))
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
