"""Wikitext -> plain text. A change of what comes out raises `mediawiki.CLEANING_VERSION`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from saelib.text.gaps import without_gaps
from saelib.text.templates import GAP, words

HIDDEN_TAGS = frozenset(
    [
        "ref",
        "references",
        "table",
        "gallery",
        "timeline",
        "score",
        "imagemap",
        "hiero",
        "syntaxhighlight",
        "source",
        "mapframe",
        "graph",
        "templatestyles",
        "style",
        "noinclude",
    ]
)
FORMULA_TAGS = frozenset(["math", "chem", "ce"])  # what they show is not in words
# Links whose text is no part of the page; two or three small letters link to another language.
HIDDEN_LINKS = re.compile(r"\s*((?i:file|image|media|category)|[a-z]{2,3}(-[a-z]+)*)\s*:")
# What the parser leaves where markup is unbalanced: tables, references, tags, files, quotes.
# A table or reference goes with what it holds, to its end; a reference without one loses its tag.
LEFTOVER = re.compile(
    r"(?m)(?P<table>^[^\S\n]*\{\|)|(?P<reference><ref\b[^<>]*>)"
    r"|</?(?:ref|blockquote|div|span|small|su[bp]|[bip])\b[^<>\n]*>"
    r"|\[\[(?:File|Image):[^\[\]]*\]\]|'{2,}|__[A-Z]+__"
)
TABLE_END = re.compile(r"(?m)^[^\S\n]*\|\}")
REFERENCE_END = re.compile("</ref>")
HEADING = "\x00"  # begins a heading's line until empty sections are gone


def clean_markup(wikitext: str) -> str:
    """Paragraphs, list items, and the headings of sections that keep some text.

    Inline templates give their words (`text.templates`). Other templates, formulas, tables,
    references, comments, files, categories and links to other languages are removed, and with a
    template or formula the rest of its sentence (`text.gaps`).
    """
    import mwparserfromhell

    text = _plain(mwparserfromhell.parse(re.sub("[\x00\x01]", "", wikitext)))
    text = without_leftovers(text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = without_gaps(text)
    text = re.sub(r" ?\([\s,;:]*\)", "", text)  # what a removed template leaves: "( ; )"
    text = re.sub(r"\([,;:\s]+(?![,;:\s\x00])", "(", text)
    lines = _without_empty_sections(text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def without_leftovers(text: str) -> str:
    """Text without what the parser leaves of unbalanced markup, in time linear in its length.

    Blank lines before a table go with it.
    """
    kept: list[str] = []
    done = 0  # what lies before is kept or removed
    place = 0  # where to look on
    ended = {"table": True, "reference": True}  # False: no end of it lies ahead
    while match := LEFTOVER.search(text, place):
        first = match.start()
        last = match.end()
        kind = match.lastgroup
        if kind:
            last = _end_of(kind, text, last, ended)
        if last < 0:
            place = match.end() if kind == "table" else first + 1
            continue
        if kind == "table":
            first = _blank_lines_before(text, done, first)
        kept.append(text[done:first])
        done = place = last
    return "".join((*kept, text[done:]))


def _end_of(kind: str, text: str, place: int, ended: dict[str, bool]) -> int:
    """Where a table or reference ends whose opening ends at `place`; -1 where nothing goes."""
    pattern = TABLE_END if kind == "table" else REFERENCE_END
    end = pattern.search(text, place) if ended[kind] else None
    if end:
        return end.end()
    ended[kind] = False
    on_one_line = kind == "reference" and "\n" not in text[text.rindex("<", 0, place) : place]
    return place if on_one_line else -1


def _blank_lines_before(text: str, done: int, line: int) -> int:
    """Begin of the first of the blank lines that end at `line`, none of them before `done`."""
    blank = done + len(text[done:line].rstrip())
    if blank in (0, line) or text[blank - 1] == "\n":
        return blank
    return text.index("\n", blank) + 1


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
        elif isinstance(node, nodes.Template):
            said = words(node, _plain)
            parts.append(GAP if said is None else said)
    return "".join(parts)


def _tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if name == "br":
        return "\n"
    if name in FORMULA_TAGS:
        return GAP
    return "" if name in HIDDEN_TAGS else _plain(node.contents)


def _without_empty_sections(lines: Sequence[str]) -> list[str]:
    """Stripped lines; a heading goes when the next one follows without text or a deeper one."""
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
