"""Treebank tokens -> text. FEVER's pages were tokenised by CoreNLP, brackets spelt as names."""

from __future__ import annotations

import re

BRACKET = re.compile(r"-(?:[LR][RSC]B|COLON)-")
BRACKETS = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "-COLON-": ":",
}
SPACES = r"(?<!\s)\s++"  # a whole run: looked at once, not from each of its spaces
SPACING = [  # applied in this order, after the brackets are back
    (re.compile(r"``\s?"), '"'),
    (re.compile(r"\s?''"), '"'),
    (re.compile(r"(?<!\S)`\s?(?=\S)"), "'"),
    (re.compile(rf"{SPACES}(?=[,.;:?!%)\]}}](?:[\s\"')\]}},.;:?!]|$))"), ""),
    (re.compile(r"(?<=[(\[{])\s+"), ""),
    (re.compile(rf"{SPACES}(?=(?:n't|N'T|'(?i:s|re|ve|ll|d|m))\b)"), ""),
    (re.compile(r"(?<=\w) '(?=\s(?!\d)|$)"), "'"),
    (re.compile(r"(?<!\S)([$£€])\s(?=\d)"), r"\1"),
]


def detokenize(text: str) -> str:
    """Text as it was written: brackets, colons, quotes, no space before punctuation; stripped."""
    text = BRACKET.sub(lambda match: BRACKETS[match[0]], text)
    for pattern, replacement in SPACING:
        text = pattern.sub(replacement, text)
    return text.strip()


def fever_title(page_id: str) -> str:
    """Title of a FEVER page: its id with brackets, colons and spaces as written."""
    return detokenize(page_id.replace("_", " "))
