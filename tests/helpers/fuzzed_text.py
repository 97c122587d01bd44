"""Damaged and hostile texts for every reader, in seeded trials.

Each must end in pages or in the project's own error, within its time.
"""

import bz2
import gzip
import io
import json
import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from helpers.wikitext import ARTICLE
from saelib.config import CorpusConfig
from saelib.text.apart import Cleaner, MarkupError
from saelib.text.pages import count_pages, read_pages
from saelib.text.rows import CorpusError
from saelib.text.treebank import detokenize, fever_title
from saelib.text.wikitext import without_leftovers

ROWS = [
    {"id": "Abel_-LRB-film-RRB-", "title": "Abel", "text": "Abel -LRB- 2010 -RRB- is `` new '' ."},
    {"id": "7", "text": "Tōkyō 東京 \U0001f600 \u2028 مدينة", "lines": "0\tx"},
    {"id": "8", "text": " "},
]
XML = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces>'
    '<namespace key="1">Talk</namespace></namespaces></siteinfo>'
    "<page><title>Abel &amp; Cain</title><ns>0</ns><id>1</id><revision><text>One '''two''' {{a|b}}"
    "</text></revision></page><page><title>Talk:Abel</title><id>2</id><redirect/></page></mediawiki>"
)
# Pieces that mean something to one reader or another.
DICTIONARY = [
    *(
        b"\n",
        b"\n\n",
        b" " * 50,
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\x85",
    ),
    *(
        b'"',
        b"{",
        b"}",
        b"[" * 40,
        b'{"text": ',
        b"null",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"\\ud800",
    ),
    *(b"<page>", b"</page>", b"<text>", b"<!--", b"<!DOCTYPE a [", b'<!ENTITY b "&c;">', b"&b;"),
    *(
        b'<?xml version="1.0" encoding="utf-16"?>',
        b"{{",
        b"}}",
        b"[[",
        b"]]",
        b"{|",
        b"|}",
        b"<ref>",
    ),
    *(b"</ref>", b"''", b"==", b"<b ", b"-LRB-", b"`` ", b" ''", b"n't", b"<|endoftext|>", b"<s>"),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"BZh9", b"\x1f\x8b\x08", b"PAR1"),
]
SECONDS = 5.0  # of processor time that no trial may take


def zipped(method: int, content: bytes) -> bytes:
    """An archive of FEVER's form with the content twice, once cut."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("wiki-pages/wiki-001.jsonl", content)
        archive.writestr("wiki-pages/wiki-002.jsonl", content[:80])
    return file.getvalue()


def lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


Form = tuple[str, str, bytes, Callable[[bytes], bytes]]


def forms() -> dict[str, Form]:
    """(source, file name with what follows it in the path, content, how it is packed) by name."""
    text = b"One.\n\nTwo\nthree.\n\n<|endoftext|>\nfour"
    plain: dict[str, Form] = {
        "jsonl": ("jsonl", "a.jsonl", lines(), bytes),
        "text": ("text", "a.txt", text, bytes),
        "separated": ("text", "a.txt:<|endoftext|>", text, bytes),
        "dump": ("mediawiki", "a.xml", XML.encode(), bytes),
    }
    gz = partial(gzip.compress, mtime=0)
    packed: dict[str, Form] = {
        "jsonl.gz": ("jsonl", "a.jsonl.gz", lines(), gz),
        "text.gz": ("text", "a.txt.gz", text, gz),
        "dump.gz": ("mediawiki", "a.xml.gz", XML.encode(), gz),
        "dump.bz2": ("mediawiki", "a.xml.bz2", XML.encode(), bz2.compress),
    }
    methods = ("STORED", "DEFLATED", "BZIP2")
    archives: dict[str, Form] = {
        f"zip {method.lower()}": (
            "fever",
            "w.zip",
            lines(),
            partial(zipped, getattr(zipfile, f"ZIP_{method}")),
        )
        for method in methods
    }
    return plain | packed | archives


def written(form: Form, draw: random.Random) -> bytes:
    """A form's bytes, damaged before or after they are packed."""
    _, _, content, pack = form
    if draw.random() < 0.5:
        return pack(damaged(content, draw))
    return damaged(pack(content), draw)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content after one to four changes of bytes, pieces or its length."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        first = draw.randrange(len(data) + 1)
        last = min(len(data), first + draw.randint(0, 40))
        change = draw.randrange(6)
        if change == 0 and data:
            data[min(first, len(data) - 1)] ^= 1 << draw.randrange(8)
        elif change == 1:
            del data[first:last]
        elif change == 2:
            data[first:first] = data[first:last] * draw.randint(1, 30)
        elif change == 3:
            data[first:last] = draw.choice(DICTIONARY) * draw.choice((1, 1, 2, 30))
        elif change == 4:
            data[first:last] = draw.randbytes(last - first)
        elif draw.random() < 0.3:
            del data[first:]
    return bytes(data)


def read(path: str, source: str, draw: random.Random, markup: bool) -> str:
    """What becomes of one file: "pages", or the name of the project's error."""
    cfg = CorpusConfig(
        source=source,
        path=path,
        id_column=draw.choice(("", "id")) if source == "jsonl" else "",
        on_bad_line=draw.choice(("raise", "skip")),
        n_docs=draw.choice((0, 0, 2)),
    )
    try:
        if source == "mediawiki" and not markup:
            count_pages(cfg)
        else:
            for page in read_pages(cfg):
                page.text.encode()
    except CorpusError as error:
        if path.partition(":")[0] not in str(error):
            raise ValueError(f"no file is named: {error}") from error
        return "CorpusError"
    return "pages"


def texts(draw: random.Random) -> Iterator[str]:
    """Endless random texts of markup and treebank tokens, some of them long runs of one piece."""
    pieces = [*(p.decode(errors="ignore") for p in DICTIONARY), "a", "b ", " ", "|", "(", ")", "$"]
    while True:
        chosen = draw.choices(pieces, k=draw.randint(1, 30))
        text = "".join(piece * draw.choice((1, 1, 1, 300)) for piece in chosen)
        yield draw.choice(("", ARTICLE[: draw.randrange(len(ARTICLE))])) + text


def cleaned(text: str, cleaner: Cleaner | None) -> str:
    """What becomes of one text in the project's cleaning, and with a cleaner in the parser."""
    fever_title(detokenize(text))
    without_leftovers(text)
    try:
        if cleaner:
            cleaner(text).encode()
    except MarkupError:
        return "MarkupError"
    return "text"


def trials(folder: Path, n: int, seed: int, markup_every: int = 20) -> Counter[tuple[str, str]]:
    """(form, outcome) of `n` trials, each seeded by its number.

    Raises `AssertionError` with the trial's number for what is neither pages nor the project's own
    error, or takes more than `SECONDS`. One text in `markup_every` goes through the parser too.
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    whole = forms()
    with Cleaner() as cleaner:
        for number in range(n):
            draw = random.Random(f"{seed}:{number}")
            name = draw.choice([*whole, "markup", "markup"])
            start = time.process_time()
            try:
                if name == "markup":
                    parsed = cleaner if number % markup_every == 0 else None
                    outcome = cleaned(next(texts(draw)), parsed)
                else:
                    source, path, *_ = whole[name]
                    (folder / path.partition(":")[0]).write_bytes(written(whole[name], draw))
                    outcome = read(str(folder / path), source, draw, number % markup_every == 0)
            except Exception as error:
                raise AssertionError(f"seed {seed}, trial {number} ({name}): {error!r}") from error
            seconds = time.process_time() - start
            assert seconds < SECONDS, f"seed {seed}, trial {number} ({name}): {seconds:.1f} s"
            outcomes[name, outcome] += 1
    return outcomes
