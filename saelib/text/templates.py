"""The words that MediaWiki's inline templates stand for, by kind; any other template is a gap.

A dump holds calls of templates, not what they say. Those that stand for words of a sentence are few
and common: units, other languages and scripts, transliteration, text kept on a line, dates,
abbreviations, signs, formulas of a line, quotations. `words` spells these out without computing
anything (no second unit of a conversion, no age). Others say notes and marks, which leave nothing
behind; what is left is a `GAP`, and `gaps.without_gaps` takes away what would lack a word.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

GAP = "\x01"  # stands where a template's words are unknown
Form = Callable[[Sequence[str], dict[str, str]], str | None]
Plain = Callable[[Any], str]  # parsed wikitext -> its visible text

# ---- words that are an argument of the template: its place, -1 for the last
FIRST = (
    *("small", "smaller", "smalldiv", "big", "bigger", "large", "larger", "resize", "huge"),
    *("nowrap", "nobr", "nobreak", "nowr", "nobold", "noitalic", "nq", "normal", "strong", "em"),
    *("abbr", "abbrv", "tooltip", "h:title", "sup", "sub", "mvar", "math", "linktext"),
    *("vanchor", "visible anchor", "keypress", "key", "kbd", "mono", "code", "samp", "var", "bold"),
    *("nastaliq", "script/arabic", "script/hebrew", "railgauge", "track gauge", "ipaslink"),
    *("unicode", "polytonic", "hebrew", "zh", "flag", "flagu", "flagcountry", "sans-serif"),
    *("citation needed span", "cn-span", '"'),
)
PLACES = {
    **dict.fromkeys(FIRST, 0),
    **dict.fromkeys(("lang", "langx", "script", "rtl-lang", "font color", "audio"), 1),
    **dict.fromkeys(("transl", "transliteration", "tlit", "color", "colour"), -1),
}
QUOTATIONS = {"quote", "cquote", "blockquote", "quotation", "poemquote", "centered pull quote"}
LANGUAGE = re.compile(r"lang-[a-z-]+")  # {{lang-de|…}}: its first argument
PHONES = re.compile(r"ipa-[a-z-]+")  # {{IPA-de|…}}: its first argument in brackets
NAMED = ("1", "text", "quote")  # names that the first argument is also given by

# ---- words that the template's name is, or that stand before its argument
SIGNS = {
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp", "thin space", "hair space", "ensp"), " "),
    **dict.fromkeys(("snd", "spnd", "spaced ndash", "spaced en dash", "dash"), " – "),
    **dict.fromkeys(("ndash", "en dash"), "–"),
    **dict.fromkeys(("mdash", "mdashb", "em dash"), "—"),
    **dict.fromkeys(("·", "dot", "middot", "•", "bullet"), " · "),
    **dict.fromkeys(("pb", "paragraph break", "parabr"), "\n\n"),
    **dict.fromkeys(("break", "crlf", "br"), "\n"),
    **{"'": "'", "'s": "'s", "' \"": "' \"", "\" '": "\" '", '-"': '"', "=": "=", "!": "|"},
    **{"pipe": "|", "shy": "", "wbr": "", "zwsp": "", "eqm": "⇌", "ayin": "ʿ"},
}
BEFORE = {
    **dict.fromkeys(("circa", "c.", "ca."), "c. "),
    **dict.fromkeys(("floruit", "fl.", "fl"), "fl. "),
    **{"reign": "r. ", "r.": "r. ", "us$": "US$", "usd": "US$", "a$": "A$", "aud": "A$"},
    **{"gbp": "£", "€": "€", "euro": "€", "inr": "₹", "¥": "¥", "uss": "USS ", "hms": "HMS "},
    **{"rms": "RMS ", "ss": "SS ", "hmcs": "HMCS ", "hmas": "HMAS "},
}
RANGES = {"reign", "r.", "floruit", "fl.", "fl", "circa", "c.", "ca."}  # with a second argument

# ---- units
UNITS = {
    **{"sqmi": "sq mi", "sqft": "sq ft", "sqyd": "sq yd", "sqin": "sq in", "km2": "km²"},
    **{"m2": "m²", "cm2": "cm²", "mm2": "mm²", "km3": "km³", "m3": "m³", "cm3": "cm³"},
    **{"cuft": "cu ft", "cuin": "cu in", "cuyd": "cu yd", "cumi": "cu mi", "c": "°C", "f": "°F"},
    **{"usgal": "US gal", "impgal": "imp gal", "kph": "km/h", "m/s2": "m/s²", "kg/m3": "kg/m³"},
    **{"pd/sqmi": "/sq mi", "pd/km2": "/km²", "lt": "long tons", "st": "st", "acre": "acres"},
    **{"mile": "miles", "foot": "ft", "ton": "tons", "tonne": "tonnes", "oilbbl": "bbl"},
    **{"oilbbl/d": "bbl/d", "cfs": "cu ft/s", "m3/s": "m³/s", "psi": "psi"},
}
MULTIPLES = {
    "Moilbbl": "million bbl",
    "Goilbbl": "billion bbl",
    "e3": "thousand ",
    "e6": "million ",
    "e9": "billion ",
    "e12": "trillion ",
}
BETWEEN = {
    **{"-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "or": " or "},
    **{"x": " × ", "*": " × ", "by": " by ", "+/-": " ± ", "±": " ± ", "&": " and ", "/": "/"},
    **{"to about": " to about ", "and(-)": " and ", "-,": "–"},
}
NUMBER = re.compile(r"[-−+]?[\d.,]+(e[-+]?\d+)?([+ ]?\d+)?(/+\d+)?|\d+\+\d+/+\d+")
WHOLE = re.compile(r"\d{4,}")

# ---- dates
DATES = (
    *("birth date", "birth-date", "death date", "start date", "end date", "film date", "dts"),
    *("birth date and age", "death date and age", "start date and age", "bda", "dda", "date"),
)

# ---- notes and marks, which a sentence does without
NOTES = re.compile(
    r"(cite|citation|sfn|harv|ref|efn|note|rp|r$|dead link|webarchive|wayback|isbn|issn|oclc|doi"
    r"|respell|ipac-|pronunciation|flagicon|anchor|clarify|dubious|verif|vague|who$|when$"
    r"|which$|where$|why$|how$|by whom|according to whom|fact$|cn$|full$|better source|update"
    r"|weasel|peacock|#tag|-$|clear|toc|main|see also|inflation[-/]fn|displaytitle|defaultsort).*"
    r"|.* (icon|needed|inline|source\??)|.*-inline"
)
CLEANUP = ("date", "reason")  # arguments of a remark on the text


def words(node: Any, plain: Plain) -> str | None:
    """What a parsed template says; "" for a note, None where that is not known."""
    name = _name(node)
    if name in SIGNS:
        return SIGNS[name]
    if name.startswith("formatnum:"):
        return _formatted_number(name)
    form = _form(name)
    if form:
        return form(_arguments(node, plain), _options(node, plain))
    is_note = NOTES.fullmatch(name) or any(node.has(word) for word in CLEANUP)
    return "" if is_note else None


def _form(name: str) -> Form | None:
    """What spells out a template of this name; None for any other than an inline template."""
    if name in FORMS:
        return FORMS[name]
    if name in BEFORE:
        return partial(_with_word_before, name)
    if PHONES.fullmatch(name):
        return _phones
    if LANGUAGE.fullmatch(name) or name.startswith("script/"):
        return partial(_argument, 0)
    return partial(_argument, PLACES[name]) if name in PLACES else None


def _name(node: Any) -> str:
    return str(node.name).strip().lower().replace("_", " ")


def _arguments(node: Any, plain: Plain) -> list[str]:
    """The arguments without a name, and those named by their number, in order."""
    numbered = [p for p in node.params if str(p.name).strip().isdecimal()]
    return [plain(p.value).strip() for p in numbered]


def _options(node: Any, plain: Plain) -> dict[str, str]:
    named = [p for p in node.params if not str(p.name).strip().isdecimal()]
    return {str(p.name).strip().lower(): plain(p.value).strip() for p in named}


def _formatted_number(name: str) -> str | None:
    number = name.partition(":")[2].strip()
    return _number(number) if NUMBER.fullmatch(number) else None


# A form takes a template's arguments and options, and gives its words or None.


def _argument(place: int, arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """The argument at a place; for a template of one argument, the one it has."""
    if arguments:
        return arguments[place if place < len(arguments) else -1]
    return next((options[name] for name in NAMED if name in options), None)


def _quotation(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """Its first argument, in lines of its own."""
    quoted = _argument(0, arguments, options)
    return f"\n{quoted}\n" if quoted else None


def _phones(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{IPA-de|tʃ}}, {{IPA|de|tʃ}}, {{IPA|/tʃ/}}: in the brackets given, or in square ones."""
    phones = [text for text in arguments if text and not re.fullmatch(r"[a-z]{2,3}", text)]
    first = next(iter(phones), next(iter(arguments), ""))
    return f"[{first}]" if len(arguments) > 1 and first[:1] not in "/[" else first or None


def _sic(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return f"{arguments[0]} [sic]" if arguments else "[sic]"


def _with_word_before(name: str, arguments: Sequence[str], options: dict[str, str]) -> str | None:
    shown = [argument for argument in arguments if argument]
    if name in RANGES:
        return BEFORE[name] + "–".join(shown[:2])
    return BEFORE[name] + shown[0] if shown else None


# ---- units


def _conversion(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """The measure as the page has it, before it is converted: "5 ft 11 in", "20–25 cm"."""
    said: list[str] = []
    rest = list(arguments)
    while rest and NUMBER.fullmatch(rest[0]):
        said.append(_number(rest.pop(0)))
        if len(rest) > 1 and rest[0] in BETWEEN and NUMBER.fullmatch(rest[1]):
            said.append(BETWEEN[rest.pop(0)])
            continue
        if not rest:
            return None
        said += [" ", _unit(rest.pop(0)), " "]
        if not _goes_on(rest):
            break
    return "".join(said).strip() or None


def _goes_on(rest: Sequence[str]) -> bool:
    """Whether a second number and its unit follow, as in 5|ft|11|in, and no precision."""
    return len(rest) > 2 and bool(NUMBER.fullmatch(rest[0])) and not NUMBER.fullmatch(rest[1])


def _number(text: str) -> str:
    return f"{int(text):,}" if WHOLE.fullmatch(text) else text.replace("//", "/")


def _unit(code: str) -> str:
    multiple = next((m for m in MULTIPLES if code.startswith(m)), "")
    name = code[len(multiple) :]
    return MULTIPLES.get(multiple, "") + UNITS.get(name.lower(), name)


def _measure(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{unité|100|km}}: number and unit."""
    return " ".join(argument for argument in arguments[:2] if argument) or None


def _value(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{val|1.2|e=3|u=km}}: "1.2×10^3 km"."""
    if not arguments:
        return None
    power = f"×10^{options['e']}" if options.get("e") else ""
    unit = options.get("u") or options.get("ul") or ""
    error = arguments[1] if len(arguments) > 1 else ""
    error = error if not error or error.startswith("(") else f" ± {error}"
    return f"{arguments[0]}{error}{power} {unit}".strip()


def _fraction(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    match list(arguments):
        case [below]:
            return f"1/{below}"
        case [above, below]:
            return f"{above}/{below}"
        case [whole, above, below]:
            return f"{whole} {above}/{below}"
    return None


# ---- dates


def _date(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{birth date|1809|2|12}}: "February 12, 1809", with "df" "12 February 1809"."""
    shown = [argument for argument in arguments[:3] if argument]
    if not all(argument.isdecimal() for argument in shown) or not shown:
        return " ".join(shown) or None
    year, *rest = shown
    if not rest or not 1 <= int(rest[0]) <= 12:
        return " ".join(shown)
    month = calendar.month_name[int(rest[0])]
    if len(rest) == 1:
        return f"{month} {year}"
    day = int(rest[1])
    return f"{day} {month} {year}" if options.get("df") else f"{month} {day}, {year}"


def _as_of(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    if options.get("alt"):
        return options["alt"]
    first = "since" if options.get("since") else "as of"
    date = _date(arguments, {"df": "y"})
    first = first if options.get("lc") else first.capitalize()
    return f"{first} {date}" if date else None


def _old_style(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{OldStyleDate|February 2|1905|January 20}}: both calendars' days."""
    match list(arguments):
        case [day, year, old, *_]:
            return f"{day} [O.S. {old}] {year}".replace("  ", " ").strip()
    return None


# ---- the rest


def _japanese(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{Nihongo|English|kanji|romaji}}: "English (kanji, romaji)"."""
    english, kanji, romaji = (*arguments, "", "", "")[:3]
    first = english or romaji
    inside = ", ".join(text for text in (kanji, romaji if english else "") if text)
    return f"{first} ({inside})" if first and inside else first or inside or None


def _joined(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return "".join(arguments) or None


def _in_angles(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return f"⟨{arguments[0]}⟩" if arguments else None


def _small_capitals(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return arguments[0].upper() if arguments else None


def _power_of_ten(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return f"×10^{arguments[0]}" if arguments else None


def _other_wiki(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{ill|Title|de}}, formerly {{ill|de|Title}}: the title."""
    titles = [text for text in arguments if not re.fullmatch(r"[a-z]{2,3}", text)]
    return options.get("lt") or next(iter(titles), None)


def _keys(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return "+".join(arguments) or None


def _accidental(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    return {"flat": "♭", "sharp": "♯", "natural": "♮"}.get("".join(arguments[:1]))


def _place_on_earth(arguments: Sequence[str], options: dict[str, str]) -> str | None:
    """{{Coord|13|19|N|169|9|W}}: "13°19′N 169°9′W"; nothing where it stands in the title alone."""
    if options.get("display", "inline").startswith("t"):
        return ""
    said: list[str] = []
    marks = iter("°′″")
    for argument in arguments:
        if argument in ("N", "S", "E", "W"):
            said.append(argument + " ")
            marks = iter("°′″")
        elif re.fullmatch(r"[-−]?[\d.]+", argument):
            said.append(argument + next(marks, ""))
    text = "".join(said).strip()
    return text if text[-1:] in ("E", "W") else None


FORMS: dict[str, Form] = {
    **dict.fromkeys(("convert", "cvt"), _conversion),
    **dict.fromkeys(DATES, _date),
    **dict.fromkeys(QUOTATIONS, _quotation),
    **{"ipa": _phones, "sic": _sic, "val": _value, "coord": _place_on_earth},
    **dict.fromkeys(("frac", "sfrac", "fraction"), _fraction),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("nihongo", "nihongo2", "nihongo krt"), _japanese),
    **dict.fromkeys(("chem", "chem2", "pre"), _joined),
    **dict.fromkeys(("angbr", "angle bracket", "angbr ipa", "vr"), _in_angles),
    **dict.fromkeys(("sc", "smallcaps", "small caps", "sc2"), _small_capitals),
    **dict.fromkeys(("e", "esp"), _power_of_ten),
    **dict.fromkeys(("ill", "interlanguage link", "link-interwiki"), _other_wiki),
    **dict.fromkeys(("key press", "keypress"), _keys),
    **dict.fromkeys(("unité", "unite", "unit", "nb"), _measure),
    **{"music": _accidental, "oldstyledate": _old_style},
}
