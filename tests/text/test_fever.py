"""FEVER: folder, archive and Parquet form give the same pages; damage is named."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.texts import config, jsonl, smallest_digests

from saelib.text.fever import ON_THE_HUB
from saelib.text.pages import Page, read_pages
from saelib.text.rows import CorpusError
from saelib.text.tables import loaded_rows

LONG = "Line upon line . " * 20_000
FEVER_ROWS = [
    {"id": "", "text": "", "lines": ""},  # as the real file begins
    {
        "id": "Abel_-LRB-film-RRB-",
        "text": "Abel -LRB- 2010 -RRB- is a film . It is short . ",  # ends in a space
        "lines": "0\tAbel -LRB- 2010 -RRB- is a film .\tfilm\tFilm\n1\tIt is short .\n2\t",
    },
    {"id": "Blank", "text": "", "lines": ""},
    {
        "id": "Star-COLON-_One",
        "text": "It 's `` new '' , they say . ",
        "lines": "0\tIt 's `` new '' , they say .",
    },
    {"id": "Space", "text": " ", "lines": "0\t"},
    {
        "id": "Tōkyō_-LRB-東京-RRB-",
        "text": "Tōkyō -LRB- 東京 , \u2028 \x85 مدينة -RRB- . ",
        "lines": "0\t",
    },
    {"id": "Long", "text": LONG, "lines": f"0\t{LONG}"},
]
FEVER_PAGES = [
    Page("Abel_-LRB-film-RRB-", "Abel (film)", "Abel (2010) is a film. It is short."),
    Page("Star-COLON-_One", "Star: One", 'It\'s "new", they say.'),
    Page("Tōkyō_-LRB-東京-RRB-", "Tōkyō (東京)", "Tōkyō (東京, \u2028 \x85 مدينة)."),
    Page("Long", "Long", "Line upon line. " * 19_999 + "Line upon line."),
]


def fever_folder(folder: Path) -> Path:
    """wiki-001.jsonl in escapes and wiki-002.jsonl in plain UTF-8, beside another file."""
    folder.mkdir()
    plain = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in FEVER_ROWS[2:])
    (folder / "wiki-002.jsonl").write_text(plain, encoding="utf-8", newline="\n")
    jsonl(folder / "wiki-001.jsonl", FEVER_ROWS[:2])
    jsonl(folder / "shared_task_dev.jsonl", [{"claim": "not a page"}])
    return folder


def fever_forms(folder: Path, parquet_rows: list[dict]) -> dict[str, Path]:
    """FEVER's pages as a folder, as the archive and as the hub's Parquet conversion."""
    forms = {name: folder / name for name in ("wiki-pages", "wiki-pages.zip", "conversion")}
    fever_folder(forms["wiki-pages"])
    with zipfile.ZipFile(forms["wiki-pages.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for file in forms["wiki-pages"].iterdir():
            archive.write(file, f"wiki-pages/{file.name}")
        archive.writestr("__MACOSX/wiki-pages/._wiki-001.jsonl", b"\x00\x05")
    shards = forms["conversion"] / "wiki_pages" / "wikipedia_pages"
    shards.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(parquet_rows[:2]), shards / "0000.parquet")
    pq.write_table(pa.Table.from_pylist(parquet_rows[2:]), shards / "0001.parquet")
    return forms


def test_fever_folder_archive_and_parquet_give_the_same_pages(tmp_path):
    for path in fever_forms(tmp_path, FEVER_ROWS).values():
        report: dict = {}
        assert list(read_pages(config("fever", path), report)) == FEVER_PAGES
        assert (report["pages_blank"], report["bad_lines"]) == (3, 0)
    streamed = list(
        loaded_rows(
            str(tmp_path / "conversion"),
            "hub",
            ["id", "text"],
            columns=["id", "text"],
            **ON_THE_HUB,
        )
    )
    assert streamed == [
        (f"hub, row {i}", {k: r[k] for k in ("id", "text")}) for i, r in enumerate(FEVER_ROWS, 1)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_n_docs_draws_the_same_pages_from_every_form_of_fever(tmp_path, seed):
    forms = fever_forms(tmp_path, FEVER_ROWS[::-1])
    drawn = {
        name: list(read_pages(config("fever", path, n_docs=2, seed=seed)))
        for name, path in forms.items()
    }
    chosen = smallest_digests([p.id for p in FEVER_PAGES], 2, seed)
    assert (
        drawn["wiki-pages"] == drawn["wiki-pages.zip"] == [p for p in FEVER_PAGES if p.id in chosen]
    )
    assert drawn["conversion"] == drawn["wiki-pages"][::-1], (
        "the pages are the same, their order is the form's"
    )


def test_of_the_parquet_conversion_only_id_and_text_are_read(tmp_path):
    path = tmp_path / "wiki_pages" / "0000.parquet"
    path.parent.mkdir()
    table = pa.Table.from_pylist(FEVER_ROWS[1:2]).append_column("note", pa.array(["x" * 1000]))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"x" * 1000, b"\xff" * 1000)
    )  # no longer UTF-8, which reading it would notice
    assert list(read_pages(config("fever", tmp_path))) == FEVER_PAGES[:1]


def test_the_treebank_option_off_leaves_text_and_title_as_they_are(tmp_path):
    pages = list(read_pages(config("fever", fever_folder(tmp_path / "w"), detokenize=False)))
    assert pages[0] == Page(
        "Abel_-LRB-film-RRB-",
        "Abel_-LRB-film-RRB-",
        "Abel -LRB- 2010 -RRB- is a film . It is short .",
    )
    assert [p.id for p in pages] == [p.id for p in FEVER_PAGES], (
        "the option moves no page to another split"
    )


def test_pages_are_streamed_so_later_files_are_not_touched(tmp_path):
    folder = fever_folder(tmp_path / "w")
    (folder / "wiki-002.jsonl").write_text("not JSON")
    assert next(read_pages(config("fever", folder))) == FEVER_PAGES[0]
    with pytest.raises(CorpusError, match=r"wiki-002\.jsonl:1: not JSON"):
        list(read_pages(config("fever", folder)))


def test_a_bad_line_in_the_archive_is_named_and_a_damaged_archive_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("wiki-pages/wiki-001.jsonl", '{"id": "a", "text": "one"}\n{"id": "b"}\n')
    with pytest.raises(
        CorpusError, match=r"w\.zip/wiki-pages/wiki-001\.jsonl:2: no field 'text'; it has 'id'"
    ):
        list(read_pages(config("fever", tmp_path / "w.zip")))
    (tmp_path / "w.zip").write_bytes(b"PK no archive")
    with pytest.raises(CorpusError, match=r"w\.zip: archive cannot be read \("):
        list(read_pages(config("fever", tmp_path / "w.zip")))


def test_a_damaged_member_of_the_archive_is_named(tmp_path):
    path, name = tmp_path / "w.zip", "wiki-pages/wiki-002.jsonl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wiki-pages/wiki-001.jsonl", '{"id": "a", "text": "one"}\n')
        archive.writestr(name, '{"id": "b", "text": "two"}\n' * 9)
        begin = (
            archive.getinfo(name).header_offset + 30 + len(name)
        )  # a local header is 30 bytes and the name
    data = bytearray(path.read_bytes())
    data[begin] = 0b111  # a deflate block of the type that does not exist
    path.write_bytes(data)
    pages = read_pages(config("fever", path))
    assert next(pages).text == "one"
    with pytest.raises(
        CorpusError,
        match=r"w\.zip/wiki-pages/wiki-002\.jsonl: archive cannot be read \(.*invalid block type",
    ):
        next(pages)


def test_an_archive_packed_by_lzma_is_refused_before_it_asks_for_memory(tmp_path):
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("wiki-001.jsonl", '{"id": "a", "text": "one"}\n')
    with pytest.raises(
        CorpusError, match=r"w\.zip.*'wiki-001\.jsonl' is packed by method 14; expected stored"
    ):
        list(read_pages(config("fever", path)))


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]


@pytest.mark.parametrize("method", METHODS)
def test_damage_anywhere_in_an_archive_is_an_error_that_names_it(tmp_path, method):
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("wiki-001.jsonl", "wiki-002.jsonl"):
            archive.writestr(name, '{"id": "a", "text": "one"}\n' * 4)
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(read_pages(config("fever", path)))
        except CorpusError as error:
            messages.append(str(error))
    assert len(messages) > len(whole) / 6
    assert all(str(path) in message for message in messages)


def test_an_archive_that_unpacks_to_one_line_of_200_mb_is_a_bad_line_in_little_memory(tmp_path):
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("wiki-001.jsonl", "w") as stream:
            for _ in range(200):
                stream.write(b"0" * 1_000_000)
        archive.writestr("wiki-002.jsonl", '{"id": "a", "text": "one"}\n')
    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"w\.zip/wiki-001\.jsonl:1: a line of more than 16,000"):
        list(read_pages(config("fever", path)))
    assert len(list(read_pages(config("fever", path, on_bad_line="skip")))) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("name", ["wiki-\x1b[31mred\x9b0m.jsonl", f"wiki-{'long' * 10_000}.jsonl"])
def test_names_in_an_archive_are_shown_without_control_sequences_and_cut(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "wiki-pages.zip", "w") as archive:
        archive.writestr(name, "no JSON\n")
    with pytest.raises(CorpusError, match=r"wiki-pages\.zip/'wiki-.*: not JSON") as caught:
        list(read_pages(config("fever", tmp_path / "wiki-pages.zip")))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    archive = (tmp_path / "wiki-pages.zip").read_bytes()
    (tmp_path / "wiki-pages.zip").write_bytes(archive.replace(b"wiki-", b"Wiki-", 1))
    with pytest.raises(CorpusError, match="archive cannot be read") as caught:
        list(read_pages(config("fever", tmp_path / "wiki-pages.zip")))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
