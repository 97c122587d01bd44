"""MediaWiki dumps -> articles, and the clean text of the bundled dumps, made once."""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from saelib.config import CorpusConfig, stable_hash
from saelib.env import headless
from saelib.text.assets import embedded_wiki, enwik8, made_once
from saelib.text.lines import LINE_BYTES
from saelib.text.rows import OPENERS, CorpusError, Row, matching_files, opened
from saelib.text.wikitext import clean_markup

# What the parser raises on what is no dump: among others of encodings that it does not know.
NO_DUMP = (ET.ParseError, EOFError, OSError, zlib.error, ValueError, LookupError)
PAGE = {"id", "title", "text"}  # of a line of cleaned text, and of its last:
COUNTS = {"pages_redirect", "pages_other_namespace"}
SEAL = "sha256"  # beside the counts: of the pages' lines and of the counts
MAKE_AGAIN = "delete it and run again"
ENGLISH = {"-2": "Media", "6": "File", "14": "Category"}  # namespaces whose links show no text
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
# Older names of a language's file namespace; a dump lists the newest alone.
FILE_ALIASES = {
    language: {name: "6"}
    for language, name in {
        **{"de": "Bild", "sv": "Bild", "es": "Imagen", "it": "Immagine", "nl": "Afbeelding"},
        **{"pl": "Grafika", "pt": "Imagem", "ru": "Изображение", "uk": "Зображення", "ja": "画像"},
    }.items()
}
CLEANING_VERSION = 2  # raise it where `articles` or `clean_markup` give another text


def dump_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a dump or of a folder of a dump's parts, with markup."""
    parts = matching_files(cfg.path, cfg.source, "*.xml*")
    for where, article in articles(parts, report):
        yield where, {cfg.text_column: article.pop("wikitext"), **article}


def articles(
    parts: Sequence[Path], report: dict[str, Any], cut: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, its id, title and wikitext) of each article of a dump (.xml, .xml.bz2, .xml.gz).

    Redirects and pages outside namespace 0 are counted in `report` and left out. A dump that ends
    in the middle of a page raises `CorpusError` naming it, or with `cut` is read up to its last
    whole page.
    """
    report.update(pages_redirect=0, pages_other_namespace=0)
    pages = (page for path in parts for page in _xml_pages(path, cut))
    for path, page, prefixes in pages:
        title = page.findtext("{*}title") or ""
        wikitext = page.findtext("{*}revision/{*}text") or ""
        if _namespace(page, title, prefixes) != "0":
            report["pages_other_namespace"] += 1
        elif page.find("{*}redirect") is not None or wikitext.lstrip()[:9].upper() == "#REDIRECT":
            report["pages_redirect"] += 1
        else:
            wikitext = with_english_links(wikitext, prefixes)
            article = {"id": page.findtext("{*}id"), "title": title, "wikitext": wikitext}
            yield f"{path}, page {title!r}", article


def _namespace(page: ET.Element, title: str, prefixes: dict[str, str]) -> str:
    """A page's namespace by its number; dumps before 2011 have it in the title alone."""
    return page.findtext("{*}ns") or prefixes.get(title.partition(":")[0], "0")


def with_english_links(wikitext: str, prefixes: dict[str, str]) -> str:
    """Wikitext whose links to files and categories have their English prefixes.

    A dump names them in its own language, and MediaWiki knows the English ones everywhere. A link
    that begins with a colon is shown, and stays.
    """
    names = {
        name.casefold(): ENGLISH[number]
        for name, number in prefixes.items()
        if number in ENGLISH and name.casefold() != ENGLISH[number].casefold()
    }
    if not names:
        return wikitext
    any_name = "|".join(map(re.escape, names))
    pattern = rf"(?i)\[\[\s*({any_name})\s*:"
    return re.sub(pattern, lambda match: f"[[{names[match[1].casefold()]}:", wikitext)


class _Metered:
    """A stream of which at most `LINE_BYTES` and a piece may be read between two pages' ends."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.since_page = 0

    def read(self, size: int) -> bytes:
        """The next bytes; `ValueError` where the page goes on for too long."""
        if self.since_page > LINE_BYTES:
            raise ValueError(f"a page of more than {LINE_BYTES:,} bytes")
        data = self._stream.read(size)
        self.since_page += len(data)
        return data


def _xml_pages(path: Path, cut: bool) -> Iterator[tuple[Path, ET.Element, dict[str, str]]]:
    """(path, `<page>` element, namespaces by prefix), one page at a time, each freed after use."""
    prefixes: dict[str, str] = {}
    top: ET.Element | None = None
    last: ET.Element | None = None  # the page that is being read
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:
            metered = _Metered(stream)
            events = ET.iterparse(metered, events=("start", "end"))
            for event, element in events:
                if top is None:
                    top = element
                    prefixes.update(FILE_ALIASES.get(element.get(LANGUAGE, "")[:2], {}))
                tag = element.tag.rpartition("}")[2]
                if event == "start":
                    last = element if tag == "page" else last
                elif tag == "namespace":
                    prefixes[element.text or ""] = element.get("key", "0")
                elif tag == "page":
                    yield path, element, prefixes
                    top.clear()
                    metered.since_page = 0
                    last = None
    except NO_DUMP as error:
        if cut and isinstance(error, ET.ParseError):
            return
        raise CorpusError(f"{path}: not a whole MediaWiki dump ({error}{_within(last)})") from error


def _within(page: ET.Element | None) -> str:
    """The title of the page that the parser is in, for a message."""
    title = None if page is None else page.findtext("{*}title")
    return f", in page {title!r}" if title else ""


# ---- the bundled dumps, cleaned once


def embedded_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of the embedded excerpt, without markup; its first use downloads and cleans it."""
    return _cleaned_rows(embedded_wiki(), cfg, report)


def enwik8_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of enwik8, without markup; the page in which its 10⁸ bytes end is left out."""
    return _cleaned_rows(enwik8(), cfg, report, cut=True)


def _cleaned_rows(
    dump: Path, cfg: CorpusConfig, report: dict[str, Any], cut: bool = False
) -> Iterator[Row]:
    """Rows of the dump's clean text, which is kept beside it: cleaning is slow."""
    name = stable_hash(CLEANING_VERSION, version("mwparserfromhell"))
    path = dump.with_name(f"{dump.name[:6]}-cleaned-{name}.jsonl")
    made_once(path, lambda folder: write_cleaned(dump, folder / path.name, cut))
    digest = hashlib.sha256()
    counts: dict[str, Any] = {}
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            row = _cleaned_row(line, f"{path}:{number}")
            if "text" in row:
                digest.update(line)
                yield f"{dump}, page {row['title']!r}", {cfg.text_column: row.pop("text"), **row}
            else:
                counts = row
    seal = counts.pop(SEAL, None)
    digest.update(json.dumps(counts).encode())
    if seal != digest.hexdigest():
        raise CorpusError(f"{path}: damaged; {MAKE_AGAIN}")
    report.update(counts)


def _cleaned_row(line: bytes, where: str) -> dict[str, Any]:
    """A page, or the counts of the last line; `CorpusError` naming the place for anything else."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where}: damaged ({error}); {MAKE_AGAIN}") from error
    if isinstance(row, dict) and row.keys() in (PAGE, COUNTS | {SEAL}):
        return row
    raise CorpusError(f"{where}: damaged (neither a page nor the counts); {MAKE_AGAIN}")


def write_cleaned(dump: Path, cleaned: Path, cut: bool = False) -> Path:
    """Write a dump's articles as JSONL of id, title and text.

    The last line holds the counts, and a checksum of all.
    """
    counts: dict[str, Any] = {}
    digest = hashlib.sha256()
    pages = articles([dump], counts, cut)
    with cleaned.open("wb") as file:
        bar = tqdm(pages, desc=f"cleaning {dump.name}", unit="article", disable=headless())
        for _, page in bar:
            page["text"] = clean_markup(page.pop("wikitext"))
            line = json.dumps(page).encode() + b"\n"
            digest.update(line)
            file.write(line)
        digest.update(json.dumps(counts).encode())
        last = json.dumps(counts | {SEAL: digest.hexdigest()})
        file.write(last.encode() + b"\n")
    return cleaned
