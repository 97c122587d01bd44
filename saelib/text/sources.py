"""The sources of documents, one record each. A new source is a reader and a line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from saelib.config import CorpusConfig
from saelib.files import is_there
from saelib.text.fever import fever_rows
from saelib.text.mediawiki import dump_rows, embedded_rows, enwik8_rows
from saelib.text.rows import Row, jsonl_rows, text_rows
from saelib.text.tables import dataset_rows, parquet_rows
from saelib.text.treebank import detokenize, fever_title


def as_it_stands(title: str, text: str, cfg: CorpusConfig) -> tuple[str, str]:
    """Title and text unchanged."""
    return title, text


def without_treebank_tokens(title: str, text: str, cfg: CorpusConfig) -> tuple[str, str]:
    """Title and text as they were before CoreNLP, or with `detokenize` off the text stripped."""
    if not cfg.detokenize:
        return title, text.strip()
    return fever_title(title), detokenize(text)


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    `rows(cfg, report)` streams rows in a fixed order (files in name order) and may put counts into
    the report. `as_text(title, text, cfg)`, and the removal of MediaWiki's `markup`, run on the
    pages that are wanted alone, since they may be slow.
    """

    rows: Callable[[CorpusConfig, dict[str, Any]], Iterator[Row]]
    path: str  # what `CorpusConfig.path` is for this source
    licence: str  # of the text
    # Column with the page id, unless the configuration names one; "": row number.
    id_column: str = ""
    as_text: Callable[[str, str, CorpusConfig], tuple[str, str]] = as_it_stands
    markup: bool = False  # removed in a process with bounds, `apart.Cleaner`
    hub: bool = False  # a path that does not exist is a hub id

    def on_hub(self, cfg: CorpusConfig) -> bool:
        """Whether this configuration's documents come over the network."""
        return self.hub and not is_there(cfg.path.partition(":")[0])


USERS_OWN = "the user's own text"
SOURCES = {
    "embedded": Source(
        embedded_rows,
        path="(none) the excerpt of English Wikipedia of `assets`",
        licence="CC BY-SA",
        id_column="id",
    ),
    "enwik8": Source(
        enwik8_rows,
        path="(none) the first 10⁸ bytes of Wikipedia's dump of 2006",
        licence="GFDL",
        id_column="id",
    ),
    "mediawiki": Source(
        dump_rows,
        path="a dump (.xml, .xml.bz2, .xml.gz) or a folder of its parts; articles only",
        licence="the dump's: CC BY-SA for Wikipedia",
        id_column="id",
        markup=True,
    ),
    "fever": Source(
        fever_rows,
        path="a folder or .zip of wiki-*.jsonl, a folder of Parquet, or a hub id",
        licence="CC BY-SA",
        id_column="id",
        as_text=without_treebank_tokens,
        hub=True,
    ),
    "dataset": Source(
        dataset_rows,
        path="a hub id or local folder, as name[:config[:split]]; a split may be train[:30]",
        licence="the data set's",
        hub=True,
    ),
    "jsonl": Source(
        jsonl_rows, path="a file, or a folder of *.jsonl; .gz or plain", licence=USERS_OWN
    ),
    "parquet": Source(parquet_rows, path="a file, or a folder of *.parquet", licence=USERS_OWN),
    "text": Source(
        text_rows,
        path="a folder whose .txt files are pages, or a file whose blocks of lines are; "
        "path:<|endoftext|> where documents end in that token; .gz or plain",
        licence=USERS_OWN,
        id_column="id",  # path within the folder, or number of the block's first line
    ),
}
