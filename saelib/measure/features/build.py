"""Build an index of an SAE's features: one pass over the tokens, then one over the latents.

While tokens are encoded, memory depends on neither their number nor that of latents, a few bytes a
token and the arrays that are kept apart: codes go to a temporary file and come back a few latents
at a time. Counting which latents fire together then holds all codes, 8 bytes each.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelib.activations.lm import LM
from saelib.activations.store import CLASSES, Store
from saelib.env import headless
from saelib.files import read_json, replaced_file, replaced_folder, write_json
from saelib.measure.features import index as layout
from saelib.measure.features.codes import CodesFile, CodeSpool, LatentCodes, load_codes
from saelib.measure.features.columns import TABLE, TOKEN_IDS, write_latents
from saelib.measure.features.contexts import chosen_rows
from saelib.measure.features.identity import sae_checksum
from saelib.measure.features.index import FeatureIndex
from saelib.measure.features.neighbours import nearest_by_cosine, nearest_by_firing
from saelib.measure.features.options import IndexOptions
from saelib.measure.features.sources import ORDINARY, OwnText, Source, open_source
from saelib.measure.features.statistics import Firing, TokenTypes, histograms
from saelib.measure.features.vocabulary import LogitLens
from saelib.sae import Autoencoder, sparse
from saelib.sae.base import check_store
from saelib.seal import checked, is_listed, seal_files

Arrays = dict[str, np.ndarray]
# What the rest of a build takes, in units of its matrix products and per code; benchmarks/features.
PRODUCTS = 1.3
SECONDS_PER_CODE = 1.5e-6
TRIED = 512  # rows that a forecast encodes


def build_index(
    sae: Autoencoder,
    source: Store | OwnText,
    lm: LM | None,
    folder: str | Path,
    *,
    options: IndexOptions | None = None,
    progress: bool = True,
    revived: Collection[int] | None = None,
) -> FeatureIndex:
    """Build the index of an SAE in `folder`, which it replaces, and open it.

    `source` is a store, of which the split `options.split` is indexed, or an own text. Without `lm`
    there is no vocabulary, and tokens have no texts. `revived` are the latents that were resampled
    in training; by default what `events.json` beside the folder says, in a run's folder.

    Raises:
        ValueError: SAE, source and model do not belong together, naming what differs; or the source
            has no ordinary token.
    """
    options = options or IndexOptions()
    folder = Path(folder)
    pages = _checked_source(sae, source, lm, options)
    if revived is None:
        revived = _revived_beside(folder)
    hidden = not progress or headless()
    if not hidden:
        size = f"{sae.config.n_latents:,} latents on {len(pages.tokens):,} tokens"
        tqdm.write(f"features: {size}, about {_forecast(sae, pages, lm):.0f} s")
    with replaced_folder(folder) as temporary:
        with CodeSpool(sae.config.n_latents, temporary) as spool:
            kinds = _encode(sae, pages, spool, options.batch, hidden)
            arrays = _by_latent(spool, pages, temporary, options)
        arrays |= _neighbours(sae, pages, load_codes(temporary / layout.CODES), options)
        arrays |= _vocabulary(sae, lm, options.vocabulary)
        table = _columns(arrays, kinds, revived, len(pages.tokens.ordinary))
        write_latents(temporary / layout.LATENTS, table)
        details = {name: values for name, values in arrays.items() if values.ndim > 1}
        with replaced_file(temporary / layout.DETAILS) as path:
            safetensors.numpy.save_file(details, path)
        pages.tokens.save(temporary / layout.TOKENS)
        manifest = _manifest(sae, pages, lm, options, table, arrays)
        write_json(temporary / layout.INDEX, manifest)
        seal_files(temporary, layout.FILES)
    return FeatureIndex.open(folder, sae)


def _checked_source(
    sae: Autoencoder, source: Store | OwnText, lm: LM | None, options: IndexOptions
) -> Source:
    if isinstance(source, OwnText):
        check_store(sae, source.lm.d_model, tuple(range(source.lm.n_layers + 1)))
    else:
        check_store(sae, source.d_model, tuple(source.sites))
    pages = open_source(source, sae.config.site, options.split)
    if lm is not None and lm.model_id != pages.model_id:
        raise ValueError(f"model {lm.model_id} is not that of the tokens, {pages.model_id}")
    return pages


def _revived_beside(folder: Path) -> set[int]:
    events = folder.parent / "events.json"
    if not (events.exists() and is_listed(events)):
        return set()
    return set(chain.from_iterable(event["revived"] for event in read_json(checked(events))))


# Over the tokens


@torch.no_grad()
def _encode(
    sae: Autoencoder, pages: Source, spool: CodeSpool, batch: int, hidden: bool
) -> np.ndarray:
    """Fill the spool with the codes of ordinary tokens; firings by class [classes, n_latents]."""
    kind = pages.tokens.kind
    n_latents = sae.config.n_latents
    counts = np.zeros(len(CLASSES) * n_latents, dtype=np.int64)
    start = 0
    with tqdm(total=len(kind), unit="tok", desc="features", disable=hidden) as bar:
        for x in pages.iter_rows(batch):
            rows, latents, values = entries(sae, x)
            rows += start
            place = kind[rows] * np.int64(n_latents) + latents
            counts += np.bincount(place, minlength=len(counts))
            ordinary = kind[rows] == ORDINARY
            spool.add(rows[ordinary], latents[ordinary], values[ordinary])
            start += len(x)
            bar.update(len(x))
    return counts.reshape(len(CLASSES), n_latents)


def entries(sae: Autoencoder, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, latent, code) of each code above 0 of rows x in model units, row by row."""
    x_n = sae.normalize(x.to(sae.mean.device))
    encoder = "screen" if sparse.screens(x_n.device) else "exact"
    codes, f = sae.encode_sparse(x_n, encoder)
    row = torch.repeat_interleave(codes.crow.diff())
    fires = f > 0
    columns = (row[fires], codes.col[fires].long(), f[fires].float())
    return tuple(column.cpu().numpy() for column in columns)


def forecast(sae: Autoencoder, source: Store, lm: LM | None, options: IndexOptions) -> float:
    """Seconds that an index of a store will take, by encoding its first rows."""
    return _forecast(sae, open_source(source, sae.config.site, options.split), lm)


def _forecast(sae: Autoencoder, pages: Source, lm: LM | None) -> float:
    x = next(iter(pages.iter_rows(TRIED)))
    entries(sae, x)  # the first one compiles and touches memory
    before = time.perf_counter()
    rows, _, _ = entries(sae, x)
    product = (time.perf_counter() - before) / len(x)  # seconds of one row against all latents
    n_rows = len(pages.tokens)
    columns = n_rows + sae.config.n_latents + (lm.vocab_size if lm else 0)
    codes = len(rows) / len(x) * n_rows
    return PRODUCTS * product * columns + SECONDS_PER_CODE * codes


# Over the latents


def _by_latent(spool: CodeSpool, pages: Source, folder: Path, options: IndexOptions) -> Arrays:
    """Write the codes, and compute what each latent's own say of it."""
    parts: list[Arrays] = []
    spool.flush()
    with CodesFile(folder / layout.CODES, spool.counts) as file:
        for first, codes in spool.groups():
            file.write(first, codes)
            parts.append(_own_arrays(codes, first, pages, options))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _own_arrays(codes: LatentCodes, first: int, pages: Source, options: IndexOptions) -> Arrays:
    tokens = pages.tokens
    firing = Firing.of(codes)
    types = TokenTypes.of(codes, tokens.token_id, options.token_types)
    return {
        "n_fired": firing.count,
        "total": firing.total,
        "max": firing.largest,
        "max_token_id": np.where(firing.row >= 0, tokens.token_id[firing.row], -1),
        "concentration": types.concentration,
        "n_types": types.n_types,
        "histogram": histograms(codes),
        "contexts": chosen_rows(codes, first, tokens, options.contexts, options.seed),
        "types.ids": types.token_id,
        "types.counts": types.count,
        "types.mass": types.mass,
    }


def _neighbours(
    sae: Autoencoder, pages: Source, codes: LatentCodes, options: IndexOptions
) -> Arrays:
    W = sae.W_dec.detach().cpu()
    near = nearest_by_cosine(W, W, options.neighbours, same=True)
    ordinary = pages.tokens.ordinary
    together = nearest_by_firing(codes, codes, ordinary, options.neighbours, same=True)
    return {
        "nearest.ids": near.latent,
        "nearest.values": near.value,
        "companions.ids": together.nearest.latent,
        "companions.values": together.nearest.value,
        "companion_rows": np.array(together.n_rows),
    }


def _vocabulary(sae: Autoencoder, lm: LM | None, k: int) -> Arrays:
    n_latents = sae.config.n_latents
    if lm is None:
        ids = np.zeros((n_latents, 0), dtype=np.int64)
        names = ("promoted", "suppressed")
        empty = ids.astype(np.float32)
        return {f"{n}.ids": ids for n in names} | {f"{n}.values": empty for n in names}
    found = LogitLens(lm).vocabulary(sae.W_dec.detach() / sae.scale, k)
    return {
        "promoted.ids": found.promoted.numpy(),
        "promoted.values": found.promoted_logits.numpy(),
        "suppressed.ids": found.suppressed.numpy(),
        "suppressed.values": found.suppressed_logits.numpy(),
    }


def _columns(
    arrays: Arrays, kinds: np.ndarray, revived: Collection[int], n_ordinary: int
) -> pd.DataFrame:
    """The table, by latent."""
    count = arrays["n_fired"]
    fired = np.where(count > 0, count, np.nan)
    firings = kinds.sum(0)
    shares = kinds / np.where(firings > 0, firings, np.nan)
    columns = {
        "n_fired": count,
        "density": count / n_ordinary,
        "mean": arrays["total"] / fired,
        "max": arrays["max"],
        "max_token_id": arrays["max_token_id"],
        "concentration": arrays["concentration"],
        "n_types": arrays["n_types"],
        "top_token_id": arrays["types.ids"][:, 0],
        "dead": count == 0,
        "revived": np.isin(np.arange(len(count)), list(revived)),
        "promoted_id": _first(arrays["promoted.ids"], -1),
        "suppressed_id": _first(arrays["suppressed.ids"], -1),
        "nearest": _first(arrays["nearest.ids"], -1),
        "nearest_cosine": _first(arrays["nearest.values"], np.nan),
        "companion": _first(arrays["companions.ids"], -1),
        "companion_jaccard": _first(arrays["companions.values"], np.nan),
    }
    columns |= {f"share_{name}": share for name, share in zip(CLASSES, shares, strict=True)}
    return pd.DataFrame({column.name: columns[column.name] for column in TABLE})


def _first(values: np.ndarray, empty: int | float) -> np.ndarray:
    return values[:, 0] if values.shape[1] else np.full(len(values), empty)


def _manifest(
    sae: Autoencoder,
    pages: Source,
    lm: LM | None,
    options: IndexOptions,
    table: pd.DataFrame,
    arrays: Arrays,
) -> dict[str, Any]:
    tokenizer = lm.tokenizer if lm else None
    return {
        "version": layout.VERSION,
        "sae": sae_checksum(sae),
        "site": sae.config.site,
        "model_id": pages.model_id,
        "corpus_id": pages.corpus_id,
        "source": pages.name,
        "n_latents": sae.config.n_latents,
        "n_rows": len(pages.tokens),
        "n_ordinary": len(pages.tokens.ordinary),
        "n_contexts": len(np.unique(pages.tokens.context)),
        "companion_rows": int(arrays["companion_rows"]),
        "options": options.to_dict(),
        "titles": list(pages.tokens.titles),
        "texts": dict(_texts(tokenizer, table, arrays)) if tokenizer else {},
    }


def _texts(tokenizer: Any, table: pd.DataFrame, arrays: Arrays) -> Iterator[tuple[str, str]]:
    """Texts of the tokens that the index names."""
    named = [arrays[f"{name}.ids"].ravel() for name in ("types", "promoted", "suppressed")]
    named += [table[name].to_numpy() for name in TOKEN_IDS]
    for token in np.unique(np.concatenate(named)).tolist():
        if token >= 0:
            yield str(token), tokenizer.decode([token], clean_up_tokenization_spaces=False)
