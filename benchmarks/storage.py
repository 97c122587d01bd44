"""What rows of 8 bits cost: disk, the error of a row, and the quality of SAEs trained on them.

    python benchmarks/storage.py [--json PATH] [--contexts-per-page 12] [--tokens 51200] [--seeds 0 1]

Collects the embedded model and text twice into a temporary folder, as bfloat16 and as int8. `fvu_rows` is the error of
the int8 rows against the bfloat16 ones on ordinary tokens, `fvu_rows_sink` on first and sink tokens about the mean of
all, `lost` the share of those tokens' squared norm outside their greatest dimension that is gone. Then a plain SAE and
a Gated one with the full loss are trained alike on each store, by the recipe of --profile. All are measured on the
bfloat16 store; each `…_change` is int8's less bfloat16's, the mean over seeds, `…_spread` bfloat16's range over them.
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

from saelib.assets import resolve_model
from saelib.collect import collect
from saelib.config import CollectConfig, CorpusConfig, EvalConfig
from saelib.corpus import load_contexts
from saelib.evaluate import evaluate, site_reference
from saelib.lm import LM
from saelib.runs import make_spec
from saelib.sae import SAE, GatedSAE, build_sae
from saelib.store import CLASSES, ShuffledRows, Store, row_moments
from saelib.train import train

DTYPES = ("bfloat16", "int8")
COLUMNS = ("name", "site", "megabytes", "fvu_rows", "fvu_rows_sink", "lost", "ce_id")
COLUMNS += tuple(f"{column}{part}" for column in ("fvu", "loss_recovered") for part in ("", "_change", "_spread"))


def rows_row(store: Store, whole: Store, site: int, ce_id: float) -> dict[str, Any]:
    """Disk of a site, and the error of its rows against those of the same store in another dtype."""
    files = (store.path / f"site_{site:02d}").iterdir()
    row = {"name": f"rows, {store.manifest['dtype']}", "site": site, "ce_id": ce_id}
    row |= {"megabytes": sum(file.stat().st_size for file in files) / 1e6}
    special = store.token_class(site) != CLASSES.index("ordinary")
    every, ordinary = np.arange(store.n_rows), np.flatnonzero(store.mask("ordinary"))
    sse, _ = errors(store, whole, site, ordinary)
    row |= {"fvu_rows": sse / (len(ordinary) * row_moments(whole, site, ordinary).mean_sq_dev)}
    sse, lost = errors(store, whole, site, every[special])
    deviation = whole.rows(site, every[special]).double() - row_moments(whole, site, every).mean
    return row | {"fvu_rows_sink": sse / float(deviation.square().sum()), "lost": lost}


def errors(store: Store, whole: Store, site: int, index: np.ndarray, batch: int = 4096) -> tuple[float, float]:
    """Σ‖x − x̂‖² of rows; and, with the greatest dimension of each left out, its share of their squared norms."""
    sse, rest, rest_sse = 0.0, 0.0, 0.0
    for x, y in zip(whole.iter_rows(site, index, batch), store.iter_rows(site, index, batch), strict=True):
        squares, off = x.double().square(), (x.double() - y.double()).square()
        greatest = squares.argmax(1, keepdim=True)
        sse += float(off.sum())
        rest += float(squares.scatter(1, greatest, 0.0).sum())
        rest_sse += float(off.scatter(1, greatest, 0.0).sum())
    return sse, rest_sse / rest


def trained(store: Store, arm: str, site: int, lam: float, seed: int, recipe: Mapping[str, Any]) -> SAE | GatedSAE:
    """One SAE on the ordinary training rows of a store, as notebooks train it."""
    spec = make_spec(arm, site, store.d_model, lam=lam, seed=seed, **recipe)
    index = np.flatnonzero(store.mask("ordinary", "train"))
    moments = row_moments(store, site, index)
    sae = build_sae(spec.sae, torch.Generator().manual_seed(seed))
    sae.set_normalizer_(moments.mean.float(), (store.d_model / moments.mean_sq_dev) ** 0.5)
    train(sae, ShuffledRows(store, site, index, spec.train.batch_size, seed), spec.train)
    return sae.requires_grad_(False)


def sae_row(arm: str, site: int, found: Mapping[tuple, Mapping[str, float]], seeds: Sequence[int]) -> dict[str, Any]:
    """Quality of an arm at a site on the first dtype, its spread over seeds, and what the second changes."""
    row = {"name": arm, "site": site, "seeds": len(seeds)}
    for column in ("fvu", "loss_recovered"):
        whole, small = (np.array([found[dtype, arm, seed][column] for seed in seeds]) for dtype in DTYPES)
        row |= {column: float(whole.mean()), f"{column}_spread": float(np.ptp(whole))}
        row |= {f"{column}_change": float((small - whole).mean())}
    return row


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument("--profile", default="default", help="whose recipe")
    options.add_argument("--contexts-per-page", type=int, default=12)
    options.add_argument("--sites", nargs="+", type=int, default=[2, 15, 29])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options.add_argument("--tokens", type=int, default=51_200, help="training tokens an SAE")
    options.add_argument("--lambdas", nargs=2, type=float, default=[1.3, 2.1], help="of plain and of full")
    args = options.parse_args()
    about, lm = machine("cpu"), LM.load(resolve_model("embedded"))
    recipe = recipe_of(args.profile) | {"tokens": args.tokens}
    cfg, lams = EvalConfig(ce_tokens=recipe.pop("ce_tokens")), dict(zip(("plain", "full"), args.lambdas, strict=True))
    contexts, rows = load_contexts(CorpusConfig(contexts_per_page=args.contexts_per_page), lm.tokenizer), []
    print(f"{contexts.n_tokens} tokens, computed in {lm.dtype}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        stores = {
            dtype: collect(lm, contexts, args.sites, Path(folder) / dtype, CollectConfig(dtype=dtype), progress=False)
            for dtype in DTYPES
        }
        for site in args.sites:
            references = {dtype: site_reference(lm, store, site, cfg) for dtype, store in stores.items()}
            rows += [rows_row(stores[d], stores["bfloat16"], site, references[d].ce_id) for d in DTYPES]
            saes = {
                (dtype, arm, seed): trained(stores[dtype], arm, site, lam, seed, recipe)
                for dtype in DTYPES for arm, lam in lams.items() for seed in args.seeds
            }  # fmt: skip
            found = evaluate(saes, stores["bfloat16"], site, lm, references["bfloat16"], cfg)
            rows += [sae_row(arm, site, found, args.seeds) for arm in lams]
            print(rows[-4:], flush=True)
    about |= {"computed_in": str(lm.dtype), "tokens": contexts.n_tokens}
    report(rows, COLUMNS, about, args.json)


if __name__ == "__main__":
    main()
