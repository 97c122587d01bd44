"""What a template or formula whose words are unknown leaves behind: no sentence with a hole.

A gap attached to a word or mark was a note and goes alone. In brackets, the part between commas or
semicolons that holds it goes; elsewhere the sentence does. A line that holds nothing else is empty.
"""

from __future__ import annotations

import re
import string

from saelib.text.templates import GAP

IN_BRACKETS = re.compile(r" ?\(([^()\n\x01]*\x01[^()\n]*)\)")
NOTE = re.compile(r"(?<=[\w.,;:!?\"'”’»)\]%])\x01+")
# A block or mark at the begin of a line, unless a sentence goes on after it; one at its end.
FIRST = re.compile(r"^[\s\x01]*\x01\s*(?![\s\x01(,;:.a-z])")
SENTENCE_END = re.compile(
    r"(?<=\w{3}[.!?])[\"'”’)\]»]*\s+(?=[\"'“‘(\[«]*\w)"
    r"|(?<=[)\]\"”][.!?])\s+(?=\w)|(?<=[。！？])(?=\w)"
)
BLANK = string.whitespace + GAP
CHARACTER = re.compile(r"\w|\x01")


def without_gaps(text: str) -> str:
    """Text without gaps and without what lacks a word because of them, in linear time."""
    if GAP not in text:
        return text
    text = IN_BRACKETS.sub(_without_parts, NOTE.sub("", text))
    return "\n".join(_line(line) if GAP in line else line for line in text.split("\n"))


def _without_parts(match: re.Match[str]) -> str:
    parts = re.split(r"([;,])", match[1])
    kept = [mark + part for mark, part in zip(["", *parts[1::2]], parts[::2], strict=True)]
    inside = "".join(part for part in kept if GAP not in part).strip(" ,;")
    return f" ({inside})" if inside else ""


def _line(line: str) -> str:
    """The line's sentences without a gap; gaps at its ends are blocks, not words."""
    line = FIRST.sub("", line).rstrip(BLANK)
    if GAP not in line:
        return line
    ends = [match.end() for match in SENTENCE_END.finditer(line) if _begins(line, match.end())]
    starts = [0, *ends]
    sentences = [line[a:b] for a, b in zip(starts, [*ends, len(line)], strict=True)]
    return "".join(sentence for sentence in sentences if GAP not in sentence).rstrip()


def _begins(line: str, place: int) -> bool:
    """Whether a sentence can begin here: with a capital, a figure, or a script without capitals."""
    first = CHARACTER.search(line, place)
    return bool(first) and not first[0].islower()
