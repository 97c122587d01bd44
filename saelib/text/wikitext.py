"""MediaWiki dumps -> articles -> plain text: what `corpus` reads of Wikipedia, page by page.

The cleaned text of the workbook's own dumps is kept under a hash of this file, so that it holds nothing but what
decides that text.
"""

from __future__ import annotations

import bz2
import gzip
import html
import json
import os
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

OPENERS = {".bz2": bz2.open, ".gz": gzip.open}


class CorpusError(ValueError):
    """The corpus cannot be read or holds too little; the message names file and line, or pages and tokens."""


def articles(
    parts: Sequence[Path], report: dict[str, Any], cut: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, its id, title and wikitext) of each article of a dump (.xml, .xml.bz2, .xml.gz).

    Redirects and pages outside namespace 0 are counted in `report` and left out. A dump that ends in the middle of a
    page raises `CorpusError` naming it, or with `cut` is read up to its last whole page.
    """
    report.update(pages_redirect=0, pages_other_namespace=0)
    for path, page, prefixes in (found for part in parts for found in _xml_pages(part, cut)):
        title, wikitext = (
            page.findtext("{*}title") or "",
            page.findtext("{*}revision/{*}text") or "",
        )
        if _namespace(page, title, prefixes) != "0":
            report["pages_other_namespace"] += 1
        elif page.find("{*}redirect") is not None or wikitext.lstrip()[:9].upper() == "#REDIRECT":
            report["pages_redirect"] += 1
        else:
            yield (
                f"{path}, page {title!r}",
                {"id": page.findtext("{*}id"), "title": title, "wikitext": wikitext},
            )


def _namespace(page: ET.Element, title: str, prefixes: dict[str, str]) -> str:
    """A page's namespace by its number; dumps before 2011 have it in the title alone."""
    return page.findtext("{*}ns") or prefixes.get(title.partition(":")[0], "0")


def _xml_pages(path: Path, cut: bool) -> Iterator[tuple[Path, ET.Element, dict[str, str]]]:
    """(path, `<page>` element, namespaces by prefix), one page at a time, each freed after use."""
    prefixes: dict[str, str] = {}
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:
            events = ET.iterparse(stream, events=("start", "end"))
            _, top = next(events)
            for event, element in events:
                tag = element.tag.rpartition("}")[2] if event == "end" else ""
                if tag == "namespace":
                    prefixes[element.text or ""] = element.get("key", "0")
                elif tag == "page":
                    yield path, element, prefixes
                    top.clear()
    except (ET.ParseError, EOFError, OSError, zlib.error) as exc:
        if cut and isinstance(exc, ET.ParseError):
            return
        raise CorpusError(f"{path}: not a whole MediaWiki dump ({exc})") from exc


def write_cleaned(dump: Path, cleaned: Path, cut: bool = False) -> Path:
    """Write a dump's articles as JSONL of id, title and text, its last line the counts of what was left out."""
    counts: dict[str, Any] = {}
    pages = articles([dump], counts, cut)
    silent = bool(os.environ.get("SAELIB_HEADLESS"))
    with cleaned.open("w", encoding="utf-8") as file:
        for _, page in tqdm(pages, desc=f"cleaning {dump.name}", unit="article", disable=silent):
            page["text"] = clean_markup(page.pop("wikitext"))
            file.write(json.dumps(page) + "\n")
        file.write(json.dumps(counts) + "\n")
    return cleaned


HIDDEN_TAGS = {
    "ref",
    "references",
    "table",
    "gallery",
    "math",
    "chem",
    "timeline",
    "score",
    "imagemap",
    "hiero",
}
HIDDEN_TAGS |= {
    "syntaxhighlight",
    "source",
    "mapframe",
    "graph",
    "templatestyles",
    "style",
    "noinclude",
}
HIDDEN_LINKS = re.compile(
    r"\s*((?i:file|image|media|category)|[a-z]{2,3}(-[a-z]+)*)\s*:"
)  # and other languages
LEFTOVERS = re.compile(  # where unbalanced markup makes the parser give up: tables, references, tags, quotes
    r"(?ms)^\s*\{\|.*?^\s*\|\}|<ref\b[^<>]*>.*?</ref>|</?(?:ref|blockquote|div|span|small|su[bp]|[bip])\b[^<>\n]*>"
    r"|\[\[(?:File|Image):[^\[\]]*\]\]|'{2,}|__[A-Z]+__"
)
HEADING = "\x00"  # begins a heading's line until empty sections are gone


def clean_markup(wikitext: str) -> str:
    """Wikitext -> plain text: paragraphs, list items, and the headings of sections that keep some text.

    Templates, tables, references, comments, formulas, files, categories and links to other languages are removed.
    """
    import mwparserfromhell

    text = _plain(mwparserfromhell.parse(wikitext))
    text = LEFTOVERS.sub("", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\([\s,;:]*\)", "", text)  # what a removed template leaves: "( ; )"
    text = re.sub(r"\([,;:\s]+(?![,;:\s\x00])", "(", text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_without_empty_sections(text.split("\n")))).strip()


def _plain(code: Any) -> str:
    """Visible text of parsed wikitext."""
    from mwparserfromhell import nodes

    if code is None:
        return ""
    parts = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            parts.append(node.value)
        elif isinstance(node, nodes.Heading):
            parts.append(f"{HEADING}{node.level}{_plain(node.title).strip()}")
        elif isinstance(node, nodes.Wikilink) and not HIDDEN_LINKS.match(str(node.title)):
            parts.append(_plain(node.text) or _plain(node.title).lstrip(":"))
        elif isinstance(node, nodes.ExternalLink):
            parts.append(_plain(node.title) if node.brackets else str(node.url))
        elif isinstance(node, nodes.Tag):
            parts.append(_tag(node))
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(html.unescape(str(node)))
    return "".join(parts)


def _tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    return "\n" if name == "br" else "" if name in HIDDEN_TAGS else _plain(node.contents)


def _without_empty_sections(lines: Sequence[str]) -> list[str]:
    """Stripped lines; a heading goes when no text or deeper heading follows it before the next one."""
    kept: list[str] = []
    below = 0  # level of the heading that follows, 9 for text
    for line in map(str.strip, reversed(lines)):
        if line.startswith(HEADING):
            level = int(line[1])
            if below > level:
                kept.append(line[2:])
                below = level
        else:
            kept.append(line)
            below = 9 if line else below
    return kept[::-1]
