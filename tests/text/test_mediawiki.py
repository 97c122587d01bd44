"""MediaWiki dumps: articles by namespace, the memory of a page, ends that are cut off."""

import bz2
import gzip
import hashlib
import json
import re
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.growth import grows_in_proportion
from helpers.wikitext import ARTICLE, PLAIN

from saelib.config import CorpusConfig
from saelib.text import apart, mediawiki
from saelib.text import pages as pages_module
from saelib.text.assets import embedded_wiki
from saelib.text.mediawiki import (
    CLEANING_VERSION,
    articles,
    with_english_links,
    write_cleaned,
)
from saelib.text.pages import Page, read_pages
from saelib.text.rows import CorpusError
from saelib.text.wikitext import clean_markup


def config(path: Path, **options) -> CorpusConfig:
    return CorpusConfig(source="mediawiki", path=str(path), **options)


def dump(path: Path, pages: list[tuple[str, str, str, str]]) -> Path:
    """A dump of (title, namespace, id, text); `#R` as text makes a redirect element."""
    from xml.sax.saxutils import escape

    body = "".join(
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>"
        + ('<redirect title="x"/>' if text == "#R" else "")
        + f"<revision><id>9{number}</id><text>{escape(text)}</text></revision></page>"
        for title, ns, number, text in pages
    )
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo/>'
    xml = f"{head}{body}</mediawiki>".encode()
    path.write_bytes(
        {".bz2": bz2.compress, ".gz": gzip.compress}.get(path.suffix.lower(), bytes)(xml)
    )
    return path


@pytest.mark.parametrize("name", ["d.xml", "d.xml.bz2", "d.xml.gz", "d.XML.GZ"])
def test_a_dump_gives_its_articles_without_redirects_and_other_namespaces(tmp_path, name):
    pages = [
        ("Abel", "0", "12", ARTICLE),
        ("Old", "0", "13", "#R"),
        ("Older", "0", "14", "#redirect [[Abel]]"),
        ("Talk:Abel", "1", "15", "talk"),
        ("Blank", "0", "16", "{{only a template}}"),
        ("Cain & Abel", "0", "17", "Two."),
    ]
    report: dict = {}
    read = list(read_pages(config(dump(tmp_path / name, pages)), report))
    assert read == [Page("12", "Abel", PLAIN), Page("17", "Cain & Abel", "Two.")]
    assert {k: v for k, v in report.items() if k.startswith("pages_")} == {
        "pages_blank": 1,
        "pages_redirect": 2,
        "pages_other_namespace": 1,
    }


def test_the_parts_of_a_dump_are_read_in_name_order_and_counted_together(tmp_path):
    dump(tmp_path / "d2.xml-p20p29.bz2", [("C", "0", "20", "Three."), ("Old", "0", "21", "#R")])
    dump(
        tmp_path / "d1.xml",
        [("A", "0", "10", "One."), ("Older", "0", "11", "#R"), ("Talk:A", "1", "12", "talk")],
    )
    report: dict = {}
    read = list(read_pages(config(tmp_path), report))
    assert read == [Page("10", "A", "One."), Page("20", "C", "Three.")]
    assert (report["pages_redirect"], report["pages_other_namespace"]) == (2, 1)
    (tmp_path / "d3.xml").write_text("<mediawiki><page>")
    assert list(islice(read_pages(config(tmp_path)), 2)) == read, (
        "streamed: the third part is not touched"
    )
    with pytest.raises(CorpusError, match=r"d3\.xml: not a whole MediaWiki dump"):
        list(read_pages(config(tmp_path)))


def test_a_dump_is_read_in_the_memory_of_a_page(tmp_path):
    path = dump(
        tmp_path / "d.xml", [(f"Talk:{i}", "1", str(i), "talk " * 5000) for i in range(300)]
    )  # 7.5 MB
    tracemalloc.start()
    assert list(read_pages(config(path))) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_truncated_dump_is_an_error_naming_it(tmp_path):
    path = dump(tmp_path / "d.xml.bz2", [("Abel", "0", "12", "text " * 2000)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"d\.xml\.bz2: not a whole MediaWiki dump"):
        list(read_pages(config(path)))
    (tmp_path / "d.xml").write_text("<mediawiki><page>")
    with pytest.raises(CorpusError, match=r"d\.xml: not a whole MediaWiki dump"):
        list(read_pages(config(tmp_path / "d.xml")))


OLD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/"><siteinfo><namespaces>
<namespace key="-1">Special</namespace><namespace key="0" /><namespace key="1">Talk</namespace>
<namespace key="4">Wikipedia</namespace></namespaces></siteinfo>"""


def old_page(number: int, title: str, text: str) -> str:
    revision = f"<revision><text>{text}</text></revision>"
    return f"<page><title>{title}</title><id>{number}</id>{revision}</page>"


def test_an_old_dump_has_its_namespaces_in_the_titles(tmp_path):
    pages = [
        (1, "Abel", "One."),
        (2, "Talk:Abel", "talk"),
        (3, "Wikipedia:About", "we"),
        (4, "Alien: Isolation", "Two."),
        (5, "File", "an article on files"),
        (6, "Talk", "an article on talk"),
    ]
    (tmp_path / "d.xml").write_text(OLD + "".join(old_page(*p) for p in pages) + "</mediawiki>")
    report: dict = {}
    titles = [p.title for p in read_pages(config(tmp_path), report)]
    assert titles == ["Abel", "Alien: Isolation", "File", "Talk"], "a name is no prefix"
    assert report["pages_other_namespace"] == 2


GERMAN = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="de"><siteinfo>
<namespaces><namespace key="-2">Medium</namespace><namespace key="0" /><namespace key="6">Datei
</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>""".replace("\n", "")


def test_a_dump_names_files_and_categories_in_its_own_language(tmp_path):
    text = (
        "[[Datei:Abel.jpg|mini|hochkant|Bild von [[Abel]]]]Abel malt.[[ bild : a.jpg|mini]]"
        "\n\n[[File:a.jpg|mini]][[:Kategorie:Maler|Maler]] im [[Kategorienraum]]."
        "\n[[kategorie:Maler]]"
    )
    (tmp_path / "d.xml").write_text(GERMAN + old_page(1, "Abel", text) + "</mediawiki>")
    (page,) = read_pages(config(tmp_path))
    assert page.text == "Abel malt.\n\nMaler im Kategorienraum."


TURKISH = GERMAN.replace("Kategorie", "Kategori").replace('"de"', '"tr"')


def test_a_category_written_with_turkish_letters_is_one(tmp_path):
    text = (
        "Abel.\n[[KATEGORİ:Ressamlar|A]] [[kategorı : Ressamlar]] [[DATEİ:a.jpg]] [[Kategoriler:b]]"
    )
    (tmp_path / "d.xml").write_text(TURKISH + old_page(1, "Abel", text) + "</mediawiki>")
    (page,) = read_pages(config(tmp_path, on_bad_line="skip"))
    assert page.text == "Abel.\nKategoriler:b"


def test_a_namespace_without_a_name_takes_no_link(tmp_path):
    nameless = GERMAN.replace("Datei", " ")
    text = "[[:Category:Maler|Die Maler]] und [[ :Abel|Abel]]."
    (tmp_path / "d.xml").write_text(nameless + old_page(1, ":Abel", text) + "</mediawiki>")
    (page,) = read_pages(config(tmp_path))
    assert page.text == "Die Maler und Abel."


NAMESPACES = {"Datei": "6", "": "14"}


def test_unclosed_links_of_many_spaces_are_left_as_they_are():
    page = "[[" + " " * 80_000 + "[[x" * 100_000 + "[[" + " x" * 500_000
    assert with_english_links(page, NAMESPACES) == page


@pytest.mark.parametrize("piece", [" ", "[[x", " x", "[[ "])
def test_links_of_many_spaces_take_time_in_proportion_to_their_length(piece):
    assert grows_in_proportion(
        lambda text: with_english_links(text, NAMESPACES), lambda n: "[[" + piece * n, 60_000
    )


def test_a_namespace_with_spaces_around_its_number_is_that_number(tmp_path):
    pages = [("Abel", " 0\n", "1", "One."), ("Talk:Abel", " 1 ", "2", "talk")]
    report: dict = {}
    read = list(read_pages(config(dump(tmp_path / "d.xml", pages)), report))
    assert (read, report["pages_other_namespace"]) == ([Page("1", "Abel", "One.")], 1)


@pytest.mark.parametrize("times", [(3, 5, 4), (3, 4, 4), (None, None, None)])
def test_of_a_dump_of_histories_the_newest_text_is_read(tmp_path, times):
    revisions = "".join(
        (f"<timestamp>200{time}-01-01T00:00:00Z</timestamp>" if time else "") + f"<text>{n}.</text>"
        for n, time in enumerate(times)
    ).replace("</text>", "</text></revision><revision>")
    page = f"<page><title>Abel</title><id>1</id><revision>{revisions}</revision></page>"
    (tmp_path / "d.xml").write_text(
        OLD + page.replace("<revision></revision>", "") + "</mediawiki>"
    )
    (read,) = read_pages(config(tmp_path))
    assert read.text == ("1." if times[1] == 5 else "2.")


def test_a_title_without_end_is_not_repeated_in_full(tmp_path):
    long = "long " * 50_000
    pages = [(long, "0", "1", "One."), ("A", "0", "2", "Two."), (long, "0", "3", "{{" * 100_000)]
    path = dump(tmp_path / "d.xml", pages)
    report: dict = {}
    assert [page.id for page in read_pages(config(path, on_bad_line="skip"), report)] == ["2"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError) as caught:
        list(read_pages(config(path, on_bad_line="skip")))
    for message in (*report["bad_line_examples"], str(caught.value)):
        assert "long long" in message
        assert len(message) < 1000


@pytest.mark.parametrize(
    "end", ["<page><title>Cut</title><id>3</id><revision><text>Half a sent", "<page><tit", ""]
)
def test_a_dump_cut_off_gives_its_whole_pages_only_where_that_is_asked_for(tmp_path, end):
    path = tmp_path / "d.gz"
    path.write_bytes(
        gzip.compress(
            (OLD + old_page(1, "Abel", "One.") + old_page(2, "Cain", "Two.") + end).encode()
        )
    )
    assert [page["title"] for _, page in articles([path], {}, cut=True)] == ["Abel", "Cain"]
    with pytest.raises(CorpusError, match=r"d\.gz: not a whole MediaWiki dump"):
        list(articles([path], {}))
    path.write_bytes(path.read_bytes()[:-20])  # not the text but its archive ends too early: damage
    with pytest.raises(CorpusError, match=r"d\.gz: not a whole MediaWiki dump"):
        list(articles([path], {}, cut=True))


def test_the_cleaned_dump_is_its_articles_and_then_the_counts(tmp_path):
    pages = [
        ("Abel", "0", "12", ARTICLE),
        ("Old", "0", "13", "#R"),
        ("Blank", "0", "16", "{{only a template}}"),
    ]
    path = write_cleaned(dump(tmp_path / "d.xml", pages), tmp_path / "c.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    counts = {"pages_redirect": 1, "pages_other_namespace": 0}
    sealed = lines[0] + lines[1] + json.dumps(counts).encode()
    sha256 = hashlib.sha256(sealed).hexdigest()
    assert [json.loads(line) for line in lines] == [
        {"id": "12", "title": "Abel", "text": PLAIN},
        {"id": "16", "title": "Blank", "text": ""},
        counts | {"sha256": sha256},
    ]


@pytest.fixture
def bundled(tmp_path, home, monkeypatch):
    """A small dump in the embedded excerpt's place, and the path of its clean text."""
    pages = [("Abel", "0", "12", ARTICLE), ("Cain", "0", "13", "Two."), ("Old", "0", "14", "#R")]
    path = dump(tmp_path / "enwiki.xml", pages)
    monkeypatch.setattr(mediawiki, "embedded_wiki", lambda: path)
    assert [page.title for page in read_pages(CorpusConfig())] == ["Abel", "Cain"]
    (cleaned,) = tmp_path.glob("enwiki-cleaned-*.jsonl")
    return cleaned


def test_a_change_anywhere_in_the_cleaned_text_is_an_error_that_names_it(bundled):
    whole = bundled.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        bundled.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorpusError, match=rf"{bundled.name}.*: damaged.*; delete it and run"):
            list(read_pages(CorpusConfig()))


def test_cleaned_text_that_is_cut_off_is_an_error_that_names_it(bundled):
    lines = bundled.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 2):
        bundled.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(CorpusError, match=rf"{bundled.name}: damaged; delete it"):
            list(read_pages(CorpusConfig()))


def test_a_draw_of_a_dump_passes_over_pages_that_are_blank_without_their_markup(
    tmp_path, monkeypatch
):
    pages = [
        (f"A{i}", "0", str(i), "{{only a template}}" if i % 3 else f"Text {i}.") for i in range(300)
    ]
    everything = config(dump(tmp_path / "d.xml", pages))
    first = sorted(
        read_pages(everything), key=lambda p: hashlib.sha256(f"0:{p.id}".encode()).digest()
    )[:10]
    cleaned = []
    monkeypatch.setattr(
        pages_module.Cleaner, "__call__", lambda _, text: cleaned.append(text) or clean_markup(text)
    )
    drawn = list(read_pages(replace(everything, n_docs=10)))
    assert {p.id for p in drawn} == {p.id for p in first}
    assert len(cleaned) < 250, "markup is removed only where a page may be drawn"


# ---- bounds and damage


def test_a_page_whose_markup_takes_too_long_is_a_bad_line(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "SECONDS", 0.2)
    endless = "{{a|" * 8000
    path = dump(
        tmp_path / "d.xml",
        [("Abel", "0", "1", "One."), ("Endless", "0", "2", endless), ("Cain", "0", "3", "Two.")],
    )
    cause = (
        "its markup takes more than 0.8 s of processor time, the most that 32,000 characters may"
    )
    message = f"{path}, page 'Endless': {cause}"
    with pytest.raises(CorpusError, match=re.escape(message)):
        list(read_pages(config(path)))
    report: dict = {}
    pages = list(read_pages(config(path, on_bad_line="skip"), report))
    assert [page.text for page in pages] == ["One.", "Two."]
    assert report["bad_line_examples"] == [message]


def test_a_page_of_too_many_bytes_names_the_dump_and_the_page_in_little_memory(tmp_path):
    path = tmp_path / "d.xml.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"<mediawiki><page><title>Abel</title><id>1</id><revision><text>One.</text>")
        stream.write(b"</revision></page><page><title>Huge</title><id>2</id><revision><text>")
        for _ in range(200):
            stream.write(b"0" * 1_000_000)
    tracemalloc.start()
    pages = read_pages(config(path))
    assert next(pages).title == "Abel"
    with pytest.raises(
        CorpusError, match=r"d\.xml\.gz, page 'Huge': a page of more than 16,000,000 bytes"
    ):
        list(pages)
    with pytest.raises(
        CorpusError, match=r"d\.xml\.gz: .*more than 16,000,000 bytes, in page 'Huge'"
    ):  # it has no end
        list(read_pages(config(path, on_bad_line="skip")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


SHORT = patch.object(mediawiki, "LINE_BYTES", 40_000)  # the parser reads 16,384 bytes at a time


@pytest.mark.parametrize("head", ["", '<?xml version="1.0" encoding="latin-1"?>\n'])
def test_pages_of_too_many_bytes_are_skipped_and_those_after_them_read(tmp_path, head):
    path = dump(
        tmp_path / "d.xml",
        [
            ("A", "0", "1", "One."),
            ("Long", "0", "2", "long & " * 50_000),
            ("B", "0", "3", "Zwölf."),
            ("Talk:B", "1", "4", "talk " * 50_000),
            ("Longer", "0", "5", "longer " * 90_000),
            ("C", "0", "6", "Drei."),
        ],
    )
    path.write_bytes((head + path.read_text()).encode("latin-1" if head else "utf-8"))
    report: dict = {}
    with SHORT:
        pages = list(read_pages(config(path, on_bad_line="skip"), report))
        with pytest.raises(CorpusError, match=r"d\.xml, page 'Long': a page of more than"):
            list(read_pages(config(path)))
    assert pages == [Page("1", "A", "One."), Page("3", "B", "Zwölf."), Page("6", "C", "Drei.")]
    assert report["bad_lines"] == 2
    places = [line.partition(": ")[0] for line in report["bad_line_examples"]]
    assert places == [f"{path}, page 'Long'", f"{path}, page 'Longer'"]
    assert report["pages_other_namespace"] == 1


@pytest.mark.parametrize("within", range(1, 7))
def test_a_long_page_whose_end_tag_is_read_in_two_pieces_takes_no_other_with_it(tmp_path, within):
    def written(size: int) -> bytes:
        pages = [("A", "0", "1", "One."), ("Long", "0", "2", "x" * size), ("B", "0", "3", "Two.")]
        return dump(tmp_path / "d.xml", pages).read_bytes()

    end = written(0).index(b"</page>", written(0).index(b"Long"))
    size = 4 * 16_384 - within - end
    assert written(size)[: 4 * 16_384].endswith(b"</page>"[:within])
    with SHORT:
        pages = list(read_pages(config(tmp_path / "d.xml", on_bad_line="skip")))
    assert [page.title for page in pages] == ["A", "B"]


def test_a_long_page_is_passed_over_in_the_memory_of_the_bound(tmp_path):
    path = tmp_path / "d.xml.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"<mediawiki>")
        for title in ("Huge", "Huger"):
            stream.write(f"<page><title>{title}</title><id>2</id><revision><text>".encode())
            for _ in range(100):
                stream.write(b"0" * 1_000_000)
            stream.write(b"</text></revision></page>")
        stream.write(b"<page><title>A</title><id>1</id><revision><text>One.</text></revision>")
        stream.write(b"</page></mediawiki>")
    tracemalloc.start()
    pages = list(read_pages(config(path, on_bad_line="skip")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [page.title for page in pages] == ["A"]
    assert peak < 100e6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "<mediawiki/>x",
        '<?xml version="1.0" encoding="no-such"?><mediawiki/>',
        '<?xml version="1.0" encoding="utf-7"?><mediawiki/>',
        f'<?xml version="1.0" encoding="{"no" * 7000}"?><mediawiki/>',
        '<?xml version="1.0" encoding="shift_jis"?><mediawiki/>',
        '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">'
        + "".join(
            f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "]><m>&i;</m>",
        "<mediawiki><page><title>\ud800</title></page></mediawiki>",
    ],
)
def test_what_is_no_dump_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "d.xml").write_text(text, errors="surrogatepass")
    with pytest.raises(CorpusError, match=r"d\.xml: not a whole MediaWiki dump") as caught:
        list(read_pages(config(tmp_path / "d.xml")))
    assert len(str(caught.value)) < 1000


# ---- the embedded excerpt


@pytest.mark.slow
def test_enwik8_gives_its_articles_up_to_the_cut():
    report: dict = {}
    pages = list(read_pages(CorpusConfig(source="enwik8"), report))
    assert (len(pages), report["pages_blank"]) == (8571, 18)
    assert (report["pages_redirect"], report["pages_other_namespace"]) == (3649, 108), (
        "12,346 whole pages in all"
    )
    assert (pages[0].title, pages[-1].title) == ("Anarchism", "James Bond")
    assert 70e6 < sum(len(p.text) for p in pages) < 75e6


# of mwparserfromhell 0.7; another text under the same declared version would mix two corpora
CLEANED_SHA256 = "0dfbaab2e802d7f7ccbd9dc01708b1dd4c905b0e55a3abada34214033dde7cec"


@pytest.mark.slow
def test_the_clean_text_changes_only_with_its_declared_version(tmp_path):
    path = write_cleaned(embedded_wiki(), tmp_path / "cleaned.jsonl")
    *pages, last = path.read_bytes().splitlines(keepends=True)
    counts = json.loads(last)
    counts.pop("sha256")  # of the rest, which is pinned as it was written without it
    text = b"".join(pages) + json.dumps(counts).encode() + b"\n"
    assert CLEANING_VERSION == 2
    assert hashlib.sha256(text).hexdigest() == CLEANED_SHA256, (
        "raise mediawiki.CLEANING_VERSION and pin the new hash here"
    )


@pytest.mark.slow
def test_the_cleaned_excerpt_is_kept_and_read_back_the_same():
    first, again = ({}, {})
    pages = list(read_pages(CorpusConfig(), first))
    assert list(read_pages(CorpusConfig(), again)) == pages
    assert again == first
    left = [
        p.title
        for p in pages
        for mark in ("{{", "{|", "[[", "<ref", "''", "\x00")
        if mark in p.text
    ]
    assert left == []
