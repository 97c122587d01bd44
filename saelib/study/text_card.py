"""What a text is and how it was cut: the data card of notebook 01."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from saelib.activations.store import Store
from saelib.text.pages import SPLITS

log = logging.getLogger(__name__)

# source -> what it is, its licence
SOURCES = {
    "embedded": (
        "English Wikipedia: the excerpt of a dump that gensim ships for its tests, no markup",
        "CC BY-SA",
    ),
    "enwik8": (
        "English Wikipedia of March 2006: the articles of its dump's first 10⁸ bytes",
        "CC BY-SA",
    ),
    "fever": ("English Wikipedia: the page introductions of FEVER", "CC BY-SA"),
}
SHOWN = 16  # tokens of an example


def three_sites(store: Store) -> tuple[int, int, int]:
    """The first, the middle and the last stored site."""
    sites = store.sites
    return sites[0], sites[len(sites) // 2], sites[-1]


def data_card(contexts: Any, model: str, source: str, path: str) -> pd.Series:
    """What was read, whose it is, and how it was cut."""
    counts = contexts.report
    text, licence = SOURCES.get(source, (f"{source} {path}", "as its owner says"))
    lengths = np.diff(contexts.offsets)
    card = {
        "model": model,
        "text": text,
        "licence of the text": licence,
        "pages": f"{counts['pages']:,} read, {counts['pages_short']:,} shorter than a context",
        "bad lines": f"{counts['bad_lines']:,} skipped",
        "text read": f"{counts['chars']:,} characters, {counts['tokens_read']:,} tokens",
        "contexts": (
            f"{contexts.n_contexts:,} of {lengths.max()} tokens at most, none crosses a page"
        ),
        "position 0": "BOS" if contexts.bos else "a word: the tokenizer adds no BOS",
    }
    if counts.get("pages_same_text"):
        card["same text"] = (
            f"{counts['pages_same_text']:,} pages repeat another's text, "
            f"{counts['pages_test_as_train']:,} test pages that of a training page"
        )
    return pd.Series(card)


def split_card(contexts: Any) -> pd.DataFrame:
    """Pages, contexts and tokens of each split, of the whole text, also where a part is stored."""
    split = contexts.split[contexts.page]
    tokens = np.bincount(split, np.diff(contexts.offsets), minlength=3).astype(int)
    card = {
        name: [contexts.report[f"pages_{name}"], contexts.report[f"contexts_{name}"], tokens[i]]
        for i, name in enumerate(SPLITS)
    }
    table = pd.DataFrame(card, index=["pages", "contexts", "tokens"])
    return table.assign(all=table.sum(axis=1))


def where_contexts_begin(contexts: Any) -> str:
    """What stands at position 0, in a sentence."""
    if contexts.bos:
        return "They begin anywhere in a page, after a BOS token: position 0 is always BOS."
    return "They begin anywhere in a page, so position 0 is an arbitrary piece of text."


def examples(contexts: Any, tokenizer: Any, n: int) -> Iterator[str]:
    """The beginning of n contexts, evenly spaced over the text, with their pages' titles."""
    for i in np.linspace(0, contexts.n_contexts - 1, n).astype(int).tolist():
        text = tokenizer.decode(contexts.tokens(i)[:SHOWN].tolist()).replace("\ufffd", "")
        yield f"{contexts.page_titles[contexts.page[i]]}: {text!r} …"


def bos_id(tokenizer: Any) -> int:
    """The token to put in front of a text: the tokenizer's BOS, or its end-of-text token.

    Where it has neither, another special token or the first of its vocabulary, with a warning.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    token = next(iter(tokenizer.all_special_ids), 0)
    log.warning(
        "the tokenizer has neither BOS nor EOS: what asks for a BOS gets "
        f"{tokenizer.convert_ids_to_tokens(token)!r} in its place"
    )
    return token
