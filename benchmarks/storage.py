"""What rows of 8 bits cost: disk, the error of a row, and the quality of SAEs trained on them.

    python benchmarks/storage.py [--json PATH] [--profile default]
        [--sites 2 15 29] [--seeds 0 1] [--tokens 51200]

Reads the store of a profile whose notebook 01 has run, and writes its rows in 8 bits into a
temporary folder, as `collect` would. `fvu_rows` is the error of those rows against the profile's on
ordinary tokens, `fvu_rows_sink` on first and sink tokens about the mean of all, `lost` the share of
these tokens' squared norms that is gone, each row's greatest dimension left out; `ce_id` is the
next-token loss of the stored stream. Then a plain SAE and a Gated one with the full loss are
trained alike on either store, by the profile's recipe, and all are measured on the profile's:
`…_change` is what 8 bits change, the mean over seeds, `…_spread` the range over seeds without them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report
from recipe import recipe_of

from saelib.activations.moments import row_moments
from saelib.activations.rows import ShuffledRows
from saelib.activations.store import CLASSES, Store
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig, EvalConfig
from saelib.measure.evaluate import evaluate
from saelib.measure.reference import site_reference
from saelib.run.workspace import Workspace
from saelib.sae import Autoencoder, build_sae
from saelib.sae.group import train
from saelib.sae.spec import make_spec
from saelib.text.contexts import Contexts

STORES = ("whole", "small")
COLUMNS = (
    "name",
    "site",
    "megabytes",
    "fvu_rows",
    "fvu_rows_sink",
    "lost",
    "ce_id",
    "ce_id_change",
)
COLUMNS += tuple(
    f"{column}{part}" for column in ("fvu", "loss_recovered") for part in ("", "_change", "_spread")
)


def in_8_bits(whole: Store, contexts: Contexts, path: Path) -> Store:
    """The rows of a store in 8 bits."""
    said = {
        k: whole.manifest[k] for k in ("model_id", "corpus_id", "sites", "d_model", "compute_dtype")
    }
    cfg = CollectConfig(dtype="int8", **whole.manifest["config"])
    with StoreWriter(path, dtype=cfg.dtype, contexts=contexts, config=cfg, **said) as writer:
        for shard in writer.missing:
            rows = np.arange(*(contexts.offsets[c] for c in writer.plan[shard]))
            writer.write_shard(shard, {site: whole.stored_rows(site, rows) for site in whole.sites})
        writer.finish()
    return Store.open(path)


def rows_row(
    store: Store, whole: Store, site: int, ce_id: float, ce_id_whole: float
) -> dict[str, Any]:
    """Disk of a site, and the error of its rows against those of the profile's store."""
    files = (store.path / f"site_{site:02d}").iterdir()
    row = {"name": f"rows, {store.manifest['dtype']}", "site": site}
    row |= {"ce_id": ce_id, "ce_id_change": ce_id - ce_id_whole}
    row |= {"megabytes": sum(file.stat().st_size for file in files) / 1e6}
    special = store.token_class(site) != CLASSES.index("ordinary")
    every, ordinary = np.arange(store.n_rows), np.flatnonzero(store.mask("ordinary"))
    sse, _ = errors(store, whole, site, ordinary)
    row |= {"fvu_rows": sse / (len(ordinary) * row_moments(whole, site, ordinary).mean_sq_dev)}
    sse, lost = errors(store, whole, site, every[special])
    deviation = whole.rows(site, every[special]).double() - row_moments(whole, site, every).mean
    return row | {"fvu_rows_sink": sse / float(deviation.square().sum()), "lost": lost}


def errors(
    store: Store, whole: Store, site: int, index: np.ndarray, batch: int = 4096
) -> tuple[float, float]:
    """Σ‖x − x̂‖² of rows, and the share of their squared norms that is lost.

    Each row's greatest dimension is left out of the share.
    """
    sse, rest, rest_sse = 0.0, 0.0, 0.0
    for x, y in zip(
        whole.iter_rows(site, index, batch), store.iter_rows(site, index, batch), strict=True
    ):
        squares, off = x.double().square(), (x.double() - y.double()).square()
        greatest = squares.argmax(1, keepdim=True)
        sse += float(off.sum())
        rest += float(squares.scatter(1, greatest, 0.0).sum())
        rest_sse += float(off.scatter(1, greatest, 0.0).sum())
    return sse, rest_sse / rest


def trained(
    store: Store, arm: str, site: int, lam: float, seed: int, recipe: Mapping[str, Any]
) -> Autoencoder:
    """One SAE on the ordinary training rows of a store, as notebooks train it."""
    spec = make_spec(arm, site, store.d_model, lam=lam, seed=seed, **recipe)
    index = np.flatnonzero(store.mask("ordinary", "train"))
    moments = row_moments(store, site, index)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(seed))
    sae.set_normalizer_(moments.mean.float(), (store.d_model / moments.mean_sq_dev) ** 0.5)
    train(sae, ShuffledRows(store, site, index, spec.train.batch_size, seed), spec.train)
    return sae.requires_grad_(False)


def sae_row(
    arm: str, site: int, found: Mapping[tuple, Mapping[str, float]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Quality of an arm at a site without 8 bits, its spread over seeds, and what they change."""
    row = {"name": arm, "site": site, "seeds": len(seeds)}
    for column in ("fvu", "loss_recovered"):
        whole, small = (
            np.array([found[name, arm, seed][column] for seed in seeds]) for name in STORES
        )
        row |= {column: float(whole.mean()), f"{column}_spread": float(np.ptp(whole))}
        row |= {f"{column}_change": float((small - whole).mean())}
    return row


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--profile", default="default")
    options.add_argument("--sites", nargs="+", type=int, default=[2, 15, 29])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options.add_argument("--tokens", type=int, default=51_200, help="training tokens an SAE")
    options.add_argument(
        "--lambdas", nargs=2, type=float, default=[1.3, 2.1], help="of plain and of full"
    )
    args = options.parse_args()
    about, recipe = machine("cpu"), recipe_of(args.profile) | {"tokens": args.tokens}
    ws = Workspace(args.profile, evaluation=EvalConfig(ce_tokens=recipe.pop("ce_tokens")))
    lams, rows = dict(zip(("plain", "full"), args.lambdas, strict=True)), []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        stores = {
            "whole": ws.store,
            "small": in_8_bits(ws.store, ws.contexts, Path(folder) / "store"),
        }
        for site in args.sites:
            references = {
                name: site_reference(ws.lm, store, site, ws.evaluation)
                for name, store in stores.items()
            }
            losses = {name: reference.ce_id for name, reference in references.items()}
            rows += [
                rows_row(store, ws.store, site, losses[n], losses["whole"])
                for n, store in stores.items()
            ]
            saes = {
                (name, arm, seed): trained(store, arm, site, lam, seed, recipe)
                for name, store in stores.items()
                for arm, lam in lams.items()
                for seed in args.seeds
            }
            found = evaluate(saes, ws.store, site, ws.lm, references["whole"], ws.evaluation)
            rows += [sae_row(arm, site, found, args.seeds) for arm in lams]
    report(rows, COLUMNS, about | {"tokens": ws.store.n_rows, "trained_on": args.tokens}, args.json)


if __name__ == "__main__":
    main()
