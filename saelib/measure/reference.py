"""Clean and ablated losses of one site on fixed test contexts: what each SAE is compared with."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelib.activations.lm import LM
from saelib.activations.moments import row_moments
from saelib.activations.store import Store
from saelib.config import EvalConfig, stable_hash
from saelib.files import parsed_json, write_json
from saelib.measure.replaced_loss import context_length, replaced_losses

SEALED = "hash"  # of the other fields of the file

log = logging.getLogger(__name__)

# Nats by which CE_id may differ from the reference's, by the dtype the model computes in. Other
# hardware and thread counts change it in float32 by about 1e-7, in bfloat16 by up to 3e-3.
CE_DRIFT = {"float32": 1e-3, "float64": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}


@dataclass(frozen=True)
class SiteReference:
    """Clean and ablated losses of one site on the fixed test contexts.

    `pages` holds for each page page_id, n (targets) and the sums in nats: ce_id, and with the
    masked positions replaced ce_zero (by zero) and ce_mean (by the mean of the ordinary training
    rows).
    """

    store_id: str
    model_id: str
    dtype: str  # the model computed in
    site: int
    config: dict[str, Any]  # the EvalConfig
    contexts: list[int]  # context numbers, in the order they are run
    n_replaced: int  # positions in the mask
    pages: list[dict[str, Any]]
    file: Path | None = field(default=None, compare=False)  # where it was written

    @property
    def n_targets(self) -> int:
        """Next-token targets in all contexts."""
        return sum(page["n"] for page in self.pages)

    @property
    def ce_id(self) -> float:
        """Loss per target, in nats, of the stored activations continued unchanged."""
        return mean_loss(self.pages, "ce_id", "n")

    def check(self, lm: LM, store: Store, site: int, cfg: EvalConfig) -> None:
        """Raise `ValueError` naming the first field in which this is not the reference of these."""
        check_model(lm, store)
        for name, value in _key(lm, store, site, cfg).items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"the reference's {name} is {getattr(self, name)!r}, "
                    f"the evaluation's is {value!r}"
                )

    def check_drift(self, ce_id: float) -> None:
        """Raise `ValueError` where CE_id, in nats, differs from this one by more than rounding."""
        allowed = CE_DRIFT[self.dtype]
        if abs(ce_id - self.ce_id) > allowed:
            file = f" in {self.file}" if self.file else ""
            remedy = f"remove {self.file}" if self.file else "make a new one"
            raise ValueError(
                f"CE_id is {ce_id:.6f} nats, the reference{file} has {self.ce_id:.6f}: more than "
                f"{allowed:g} apart, which {self.dtype} does not explain; {remedy} to have it "
                "computed anew"
            )


def mean_loss(pages: Sequence[Mapping[str, Any]], name: str, n: str) -> float:
    """Exactly rounded Σ over pages / targets.

    This is the one way in which mean losses are formed, so that equal sums stay equal.
    """
    return math.fsum(page[name] for page in pages) / sum(page[n] for page in pages)


def ce_contexts(store: Store, cfg: EvalConfig) -> list[int]:
    """Test contexts of at most `cfg.ce_tokens` tokens in all (at least one context), seeded.

    They are dealt round-robin over pages: each page gives one before any gives a second. Ordered by
    length, so that batches hold equal lengths. Raises `ValueError` where the test split has none of
    two or more tokens.
    """
    rng = np.random.default_rng(cfg.seed)
    by_page: dict[int, list[int]] = {}
    for context in rng.permutation(store.contexts_of("test")).tolist():
        if context_length(store, context) > 1:
            by_page.setdefault(_page(store, context), []).append(context)
    rounds = max(map(len, by_page.values()), default=0)
    queue = [
        contexts[i] for i in range(rounds) for contexts in by_page.values() if i < len(contexts)
    ]
    if not queue:
        raise ValueError(
            "the test split has no context of two or more tokens to measure the next-token loss on"
        )
    total = np.cumsum([context_length(store, context) for context in queue])
    affordable = max(1, int((total <= cfg.ce_tokens).sum()))
    return sorted(queue[:affordable], key=lambda c: (context_length(store, c), c))


def _page(store: Store, context: int) -> int:
    """Number of the page that a context is from."""
    return int(store.tokens["page"][store.context_rows(context).start])


def page_sums(store: Store, contexts: Sequence[int], values: np.ndarray) -> dict[str, int | float]:
    """Sum of one value per context over each page: page id -> sum."""
    sums: dict[str, int | float] = {}
    for context, value in zip(contexts, values.tolist(), strict=True):
        page = store.page_ids[_page(store, context)]
        sums[page] = sums.get(page, 0) + value
    return sums


def site_reference(
    lm: LM, store: Store, site: int, cfg: EvalConfig, cache: Path | None = None
) -> SiteReference:
    """Losses of the stored activations, of zero- and of mean-ablation at `site`, once for all SAEs.

    `cache` is a JSON file, written atomically, that names the store, model, dtype, site and
    configuration it belongs to: with others it is computed anew and overwritten. Raises
    `ValueError` for a file that is no reference or is damaged, or a store of another model.
    """
    check_model(lm, store)
    key = _key(lm, store, site, cfg)
    if cache is not None and cache.exists():
        cached = read_reference(cache)
        if all(getattr(cached, name) == value for name, value in key.items()):
            return cached
    reference = SiteReference(**key, **_reference_losses(lm, store, site, cfg), file=cache)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        content = asdict(reference)
        del content["file"]
        write_json(cache, content | {SEALED: stable_hash(content)})
    return reference


def _key(lm: LM, store: Store, site: int, cfg: EvalConfig) -> dict[str, Any]:
    """What a reference belongs to."""
    return {
        "store_id": store.store_id,
        "model_id": lm.model_id,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "site": site,
        "config": cfg.to_dict(),
    }


def read_reference(cache: Path) -> SiteReference:
    """The reference in a file; one of an earlier version, without a hash, opens with a notice.

    Raises:
        ValueError: it is no reference, or its content is not what its hash says; names the file.
    """
    try:
        content = parsed_json(cache.read_text(encoding="utf-8"))
        stated = content.pop(SEALED, None) if isinstance(content, dict) else None
        reference = SiteReference(**content)
        if stated is None:
            log.warning(f"{cache}: of an earlier version, has no hash; opened unchecked")
        elif stated != stable_hash(content):
            raise ValueError(f"damaged, its content is not what its {SEALED} says")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{cache} is not a site reference ({error}): remove it to have it computed anew"
        ) from error
    return replace(reference, file=cache)


def _reference_losses(lm: LM, store: Store, site: int, cfg: EvalConfig) -> dict[str, Any]:
    contexts = ce_contexts(store, cfg)
    mean = row_moments(store, site, np.flatnonzero(store.mask("ordinary", "train")))[0]
    mean = torch.as_tensor(mean, dtype=torch.float32, device=lm.device)
    ablations = {"ce_zero": torch.zeros_like, "ce_mean": lambda rows: mean.expand_as(rows)}
    losses = replaced_losses(lm, store, site, contexts, cfg.batch_tokens, ablations)
    columns = {"n": losses.targets, "ce_id": losses.clean, **losses.ce}
    sums = {name: page_sums(store, contexts, values) for name, values in columns.items()}
    pages = [{"page_id": page} | {name: sums[name][page] for name in columns} for page in sums["n"]]
    ordinary = store.mask("ordinary")
    n_replaced = sum(int(ordinary[store.context_rows(context)].sum()) for context in contexts)
    return {"contexts": contexts, "n_replaced": n_replaced, "pages": pages}


def check_model(lm: LM, store: Store) -> None:
    """Raise `ValueError` where a store holds activations of another model."""
    if lm.model_id != store.model_id:
        raise ValueError(
            f"the store holds activations of model {store.model_id!r}, "
            f"the model given is {lm.model_id!r}"
        )
