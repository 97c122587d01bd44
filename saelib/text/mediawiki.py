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
from xml.sax.saxutils import quoteattr

from tqdm.auto import tqdm

from saelib.config import SHOWN, CorpusConfig, shown, stable_hash
from saelib.env import headless
from saelib.text.assets import embedded_wiki, enwik8, made_once
from saelib.text.lines import LINE_BYTES, PIECE, TOO_LONG
from saelib.text.rows import OPENERS, CorpusError, Row, matching_files, opened
from saelib.text.wikitext import clean_markup

# What the parser raises on what is no dump: among others of encodings that it does not know.
NO_DUMP = (ET.ParseError, EOFError, OSError, zlib.error, ValueError, LookupError)
PAGE_END = b"</page>"
DECLARATION = re.compile(rb"(?:\xef\xbb\xbf)?<\?xml[^>]*\?>")
PASSED_OVER = "passed-over"  # attribute of a page that is too long
PAGE = {"id", "title", "text"}  # of a line of cleaned text, and of its last:
COUNTS = {"pages_redirect", "pages_other_namespace"}
SEAL = "sha256"  # beside the counts: of the pages' lines and of the counts
MAKE_AGAIN = "delete it and run again"
ENGLISH = {"-2": "Media", "6": "File", "14": "Category"}  # namespaces whose links show no text
# Up to a link's first colon; read once, however many spaces are in it.
LINK_PREFIX = re.compile(r"\[\[([^\[\]|:]++):")
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
# Older names of a language's file namespace; a dump lists the newest alone.
FILE_ALIASES = {
    **{"de": "Bild", "sv": "Bild", "es": "Imagen", "it": "Immagine", "nl": "Afbeelding"},
    **{"pl": "Grafika", "pt": "Imagem", "ru": "Изображение", "uk": "Зображення", "ja": "画像"},
}
CLEANING_VERSION = 2  # raise it where `articles` or `clean_markup` give another text


def dump_rows(cfg: CorpusConfig, report: dict[str, Any]) -> Iterator[Row]:
    """Rows of a dump or of a folder of a dump's parts, with markup."""
    parts = matching_files(cfg.path, cfg.source, "*.xml*")
    for where, article in articles(parts, report):
        if isinstance(article, str):
            yield where, article
        else:
            yield where, {cfg.text_column: article.pop("wikitext"), **article}


def articles(
    parts: Sequence[Path], report: dict[str, Any], cut: bool = False
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(where, its id, title and wikitext) of each article of a dump (.xml, .xml.bz2, .xml.gz).

    A sentence in the place of an article that is longer than `LINE_BYTES`.

    Redirects and pages outside namespace 0 are counted in `report` and left out. A dump that ends
    in the middle of a page raises `CorpusError` naming it, or with `cut` is read up to its last
    whole page.
    """
    report.update(pages_redirect=0, pages_other_namespace=0)
    pages = (page for path in parts for page in _xml_pages(path, cut))
    for path, page, prefixes in pages:
        title = page.findtext("{*}title") or ""
        wikitext = _newest_text(page)
        if _namespace(page, title, prefixes) != "0":
            report["pages_other_namespace"] += 1
        elif PASSED_OVER in page.attrib:
            yield f"{path}, page {shown(title)}", f"a page of {TOO_LONG}"
        elif page.find("{*}redirect") is not None or wikitext.lstrip()[:9].upper() == "#REDIRECT":
            report["pages_redirect"] += 1
        else:
            wikitext = with_english_links(wikitext, prefixes)
            article = {"id": page.findtext("{*}id"), "title": title, "wikitext": wikitext}
            yield f"{path}, page {shown(title)}", article


def _namespace(page: ET.Element, title: str, prefixes: dict[str, str]) -> str:
    """A page's namespace by its number; dumps before 2011 have it in the title alone.

    An article may be called what a namespace is called: "File" without a colon is one.
    """
    prefix, colon, _ = title.partition(":")
    number = (page.findtext("{*}ns") or "").strip()
    return number or (prefixes.get(prefix, "0") if colon else "0")


def _newest_text(page: ET.Element) -> str:
    """Wikitext of a page's newest revision: a dump of histories has them all, in any order.

    Of revisions of one time, or of none, the last.
    """
    revisions = reversed(page.findall("{*}revision"))
    newest = max(revisions, key=lambda r: r.findtext("{*}timestamp") or "", default=page)
    return newest.findtext("{*}text") or ""


def with_english_links(wikitext: str, prefixes: dict[str, str]) -> str:
    """Wikitext whose links to files and categories have their English prefixes.

    A dump names them in its own language, and MediaWiki knows the English ones everywhere. A link
    that begins with a colon is shown, and stays.
    """
    names = {
        _folded(name): ENGLISH[number]
        for name, number in prefixes.items()
        if number in ENGLISH and _folded(name) != _folded(ENGLISH[number])
    }

    def english(match: re.Match[str]) -> str:
        name = names.get(_folded(match[1].strip()))
        return f"[[{name}:" if name else match[0]

    return LINK_PREFIX.sub(english, wikitext) if names else wikitext


def _folded(name: str) -> str:
    """A name without its case and the dots of Turkish: "KATEGORİ" is "Kategori", "ı" is "i"."""
    return name.casefold().replace("i\u0307", "i").replace("ı", "i")


class _LongPage(ValueError):
    """A page goes on for more than `LINE_BYTES`."""


class _Metered:
    """A stream of which at most `LINE_BYTES` and a piece may be read between two pages' ends."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._declaration = b""  # of the XML, with its encoding
        self._next = b""  # to be read before the stream goes on
        self._last = b""  # bytes that were read last, in which a page's end may begin
        self.since_page = 0
        self.page: ET.Element | None = None  # the one that is being read
        self.is_ended = False

    def read(self, size: int) -> bytes:
        """The next bytes; `_LongPage` where the page goes on for too long."""
        if self.since_page > LINE_BYTES:
            raise _LongPage(f"a page of more than {LINE_BYTES:,} bytes")
        data = self._next or self._stream.read(size)
        if declared := DECLARATION.match(data):
            self._declaration = declared[0]
        self._next = b""
        self._last = (self._last + data)[-len(PAGE_END) :]
        self.since_page += len(data)
        return data

    def skip_page(self, top: str) -> None:
        """Pass over the rest of a page; what is read next is a dump of the pages after it.

        top: tag of the dump's own element.
        """
        rest = self._last
        while (end := rest.find(PAGE_END)) < 0:
            piece = self._stream.read(PIECE)
            if not piece:
                raise EOFError(f"no end of a page of more than {LINE_BYTES:,} bytes")
            rest = rest[-len(PAGE_END) :] + piece
        namespace, _, name = top.rpartition("}")
        head = f"<{name} xmlns={quoteattr(namespace[1:])}>" if namespace else f"<{name}>"
        self._next = self._declaration + head.encode() + rest[end + len(PAGE_END) :]
        self._last = b""
        self.since_page = 0


def _xml_pages(path: Path, cut: bool) -> Iterator[tuple[Path, ET.Element, dict[str, str]]]:
    """(path, `<page>` element, namespaces by prefix), one page at a time, each freed after use.

    Of a page that is too long, what was read before its text, with the attribute `PASSED_OVER`.
    """
    prefixes: dict[str, str] = {}
    metered: _Metered | None = None
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
            metered = _Metered(stream)
            while not metered.is_ended:
                for page in _pages_of(metered, prefixes):
                    yield path, page, prefixes
    except NO_DUMP as error:
        if cut and isinstance(error, ET.ParseError):
            return
        within = _within(metered.page if metered else None)
        reason = f"{str(error)[:SHOWN]}{within}"  # it may name an encoding of any length
        raise CorpusError(f"{path}: not a whole MediaWiki dump ({reason})") from error


def _pages_of(metered: _Metered, prefixes: dict[str, str]) -> Iterator[ET.Element]:
    """Pages up to the end of the stream, or up to one that is too long, which comes last."""
    top: ET.Element | None = None
    try:
        for event, element in ET.iterparse(metered, events=("start", "end")):
            if top is None:
                top = element
                prefixes[FILE_ALIASES.get(element.get(LANGUAGE, "")[:2], "File")] = "6"
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                metered.page = element if tag == "page" else metered.page
            elif tag == "namespace" and (name := (element.text or "").strip()):
                prefixes[name] = element.get("key", "0")
            elif tag == "page":
                yield element
                top.clear()
                metered.since_page = 0
                metered.page = None
        metered.is_ended = True
    except _LongPage:
        page = metered.page
        if page is None or top is None:
            raise
        page.set(PASSED_OVER, "")
        yield page
        metered.skip_page(top.tag)
        metered.page = None


def _within(page: ET.Element | None) -> str:
    """The title of the page that the parser is in, for a message."""
    title = None if page is None else page.findtext("{*}title")
    return f", in page {shown(title)}" if title else ""


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
                yield (
                    f"{dump}, page {shown(row['title'])}",
                    {cfg.text_column: row.pop("text"), **row},
                )
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
        for where, page in bar:
            if isinstance(page, str):
                raise CorpusError(f"{where}: {page}")
            page["text"] = clean_markup(page.pop("wikitext"))
            line = json.dumps(page).encode() + b"\n"
            digest.update(line)
            file.write(line)
        digest.update(json.dumps(counts).encode())
        last = json.dumps(counts | {SEAL: digest.hexdigest()})
        file.write(last.encode() + b"\n")
    return cleaned
