"""FEVER at full size: pages and tokens through corpus and packing, by form, and their memory.

    python benchmarks/corpus.py [--sizes 10000 100000] [--text enwik8] [--json PATH]

Pages of FEVER's shape (about 100 tokens, treebank tokens, its oddities: a blank first row, empty
pages, a space at the end, very long lines, other scripts) are cut from real articles and written as
a folder of 109 JSONL files, as the zip and as Parquet. Each form of each size is read, tokenised,
packed and hashed by a process of its own, whose peak memory is the kernel's account of it. `agree`:
the corpus has the same id as the folder's. The last rows draw as many pages as the smallest size
from the largest (`n_docs`): two passes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from harness import machine, parser, report

from saelib.config import CorpusConfig
from saelib.text.contexts import load_contexts
from saelib.text.pages import Page, read_pages

COLUMNS = (
    "form",
    "pages_written",
    "n_docs",
    "pages",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_mb",
    "peak_over_smallest",
    "agree",
)
FORMS = ("folder", "zip", "parquet")
FILES = 109  # of the official archive
ROW_GROUP = 1000  # rows, as in the hub's conversion
CHARS = (80, 250, 400, 500, 700, 1100)  # lengths of pages in turn: about 100 tokens on average
LONG = 100_000  # characters of the longest pages, one in a thousand, so that every size has some
OTHER_SCRIPTS = "東京 は 日本 の 首都 である 。 Москва — столица России . القاهرة عاصمة مصر . "
TREEBANK = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-"}


def treebank(text: str) -> str:
    """Text as FEVER has it: tokens apart, brackets by name, a space at the end."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return "".join(f"{TREEBANK.get(token, token)} " for token in tokens)


def pieces(pages: Sequence[Page] | Iterator[Page]) -> Iterator[tuple[str, str]]:
    """(title, text) of pages cut to FEVER's lengths, at spaces."""
    number = 0
    for page in pages:
        text, start = " ".join(page.text.split()), 0
        while len(text) - start >= CHARS[0]:
            end = text.rfind(" ", start, start + CHARS[number % len(CHARS)])
            end = end if end > start else len(text)
            yield page.title, text[start:end]
            start, number = end + 1, number + 1


def fever_rows(cfg: CorpusConfig, n: int) -> Iterator[dict[str, str]]:
    """`n` rows of FEVER's shape.

    Where the text runs out it begins again, with a number before each page to tell them apart.
    """
    yield {"id": "", "text": "", "lines": ""}
    everything = ((turn, piece) for turn in count() for piece in pieces(read_pages(cfg)))
    for number, (turn, (title, piece)) in enumerate(islice(everything, n - 1), 1):
        page_id = f"{treebank(title).strip().replace(' ', '_')}_{number}"
        text = treebank(f"{turn} {piece}" if turn else piece)
        text = (
            "" if number % 50 == 7 else text * (LONG // len(text)) if number % 1000 == 11 else text
        )
        text += OTHER_SCRIPTS * (number % 40 == 3)
        sentences = [f"{i}\t{s}" for i, s in enumerate(text.split(" . "))]
        yield {
            "id": page_id,
            "text": text,
            "lines": "\n".join([*sentences, f"{len(sentences)}\t"]) if text else "",
        }


def write_forms(folder: Path, rows: Iterator[dict[str, str]], n: int) -> None:
    """Write the rows as `folder`/wiki-*.jsonl, the same files as `zip`, and as Parquet.

    At most one group of rows is in memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = folder / "parquet" / "wiki_pages" / "wikipedia_pages"
    shards.mkdir(parents=True)
    (folder / "folder").mkdir()
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "lines")])
    with pq.ParquetWriter(shards / "0000.parquet", schema) as parquet, ExitStack() as stack:
        files = [
            stack.enter_context((folder / "folder" / f"wiki-{i:03d}.jsonl").open("w"))
            for i in range(1, FILES + 1)
        ]
        for first in range(0, n, ROW_GROUP):
            group = list(islice(rows, ROW_GROUP))
            parquet.write_table(pa.Table.from_pylist(group, schema))
            for number, row in enumerate(group, first):
                files[number * FILES // n].write(json.dumps(row) + "\n")
    with zipfile.ZipFile(folder / "zip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "folder").iterdir()):
            archive.write(file, f"wiki-pages/{file.name}")


def peak_mb() -> float:
    """Peak memory of this process alone; `ru_maxrss` would begin with that of its parent."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024 / 1e6


def measured(path: str, n_docs: int, tokenizer: str) -> dict[str, Any]:
    """Read, tokenise, pack and hash one form."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    start = time.perf_counter()
    cfg = CorpusConfig(
        "fever", path, n_docs=n_docs, min_ctx_len=16, contexts_per_page=0
    )  # as profile llama2-7b
    contexts = load_contexts(cfg, loaded)
    corpus_id = contexts.corpus_id
    seconds = time.perf_counter() - start
    counts = {k: contexts.report[k] for k in ("pages", "pages_blank", "pages_short", "contexts")}
    return counts | {
        "corpus_id": corpus_id, "tokens": contexts.report["tokens_read"], "seconds": seconds,
        "tokens_per_second": contexts.report["tokens_read"] / seconds, "peak_mb": peak_mb(),
    }  # fmt: skip


def rows_of(folder: Path, size: int, n_docs: int, args: Namespace) -> list[dict[str, Any]]:
    """Each form in a process of its own."""
    rows = []
    for form in FORMS:
        path = folder / ("zip.zip" if form == "zip" else form)
        command = [
            sys.executable,
            __file__,
            "--child",
            json.dumps([str(path), n_docs, args.tokenizer]),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(
            {"form": form, "pages_written": size, "n_docs": n_docs}
            | json.loads(done.stdout.splitlines()[-1])
        )
        rows[-1]["agree"] = rows[-1]["corpus_id"] == rows[0]["corpus_id"]
    return rows


def main() -> None:
    options = parser(__doc__.splitlines()[0], timed=False)
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000], help="pages, the fewest first"
    )
    options.add_argument(
        "--text", choices=("enwik8", "embedded"), default="enwik8", help="where pages are cut from"
    )
    options.add_argument(
        "--tokenizer", help="a folder or hub id; the embedded model's where none is given"
    )
    options.add_argument("--child", help=SUPPRESS)
    args = options.parse_args()
    if args.child:
        print(json.dumps(measured(*json.loads(args.child))))
        return
    if not args.tokenizer:
        from saelib.text.models import EMBEDDED, named_model

        args.tokenizer = str(named_model(EMBEDDED))
    about, rows, cfg = machine("cpu"), [], CorpusConfig(args.text)
    with tempfile.TemporaryDirectory(dir=".") as base:
        for size in args.sizes:
            folder = Path(base) / str(size)
            write_forms(folder, fever_rows(cfg, size), size)
            rows += rows_of(folder, size, 0, args)
        rows += rows_of(folder, size, args.sizes[0], args)
    smallest = {row["form"]: row["peak_mb"] for row in rows[: len(FORMS)]}
    report(
        [row | {"peak_over_smallest": row["peak_mb"] / smallest[row["form"]]} for row in rows],
        COLUMNS,
        about,
        args.json,
    )


if __name__ == "__main__":
    main()
