"""Do the tests see a wrong line? One-line breaks of the modules that compute, one at a time.

python benchmarks/mutants.py --n 60 --json benchmarks/results/mutants.json
python benchmarks/mutants.py --only saelib/measure/pursuit.py --n 1000 --list

The package is copied to a temporary folder and broken there: a comparison swapped, a constant
changed, + for -, * for /, a `not` dropped, `and` for `or`, min for max, a statement that changes
something in place left out, two arguments swapped. The tests of the same room that import the
module run until one fails. Breaks stand in an order that the seed and their own text decide:
`--n 120` repeats `--n 60` and goes on.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("sae", "measure", "study")
# Not broken: what needs a GPU or the network, and what writes figures, tables' labels and texts.
LEFT_OUT = (
    "sae/sparse/triton.py",
    "sae/formats/card.py",
    "sae/formats/download.py",
    "sae/formats/hub.py",
    "measure/columns.py",
    "measure/features/columns.py",
    "study/notebooks.py",
    "study/text_card.py",
)
# Constants that decide how much is held at once, or name a version: no result depends on them.
SIZES = {"ROWS", "CHUNK", "CODED_AT_ONCE", "LOGIT_ROWS", "ROW_BATCH", "AT_ONCE", "BLOCK"}
# Functions whose numbers and conditions choose words.
WORDS = ("sentence", "caption", "title", "note", "summary", "label", "words", "__repr__", "__str__")
SYMMETRIC = {
    *("isinstance", "issubclass", "zip", "min", "max", "maximum", "minimum", "equal", "allclose"),
    *("isclose", "array_equal", "logical_and", "logical_or", "union1d", "getattr", "print", "set"),
    *("dot", "vecdot", "add", "mul", "hypot", "gcd", "__init__"),
}
COMPARISONS = {
    ast.Lt: (ast.GtE, ast.LtE),
    ast.LtE: (ast.Gt, ast.Lt),
    ast.Gt: (ast.LtE, ast.GtE),
    ast.GtE: (ast.Lt, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
SUMS = {ast.Add: ast.Sub, ast.Sub: ast.Add}
PRODUCTS = {ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult}
PAIRS = ("min", "max"), ("amin", "amax"), ("minimum", "maximum"), ("argmin", "argmax")
PAIRS += ("clamp_min", "clamp_max"), ("idxmin", "idxmax"), ("nanmin", "nanmax"), ("floor", "ceil")
EXTREMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
FAR = 4  # a test with so many modules between itself and a broken one is not asked
NO_HELP = {"test_cuda"}  # tests that need a GPU
NO_TESTS, NOT_THE_COPY = 5, 97  # exit statuses of a test process
SAME = ("module", "line", "kind", "before", "after")  # one break is told from another by these
COLUMNS = ("room", "kind", "breaks", "killed", "timed_out", "survived", "score")


@dataclass(frozen=True)
class Break:
    """One change of one module: bytes [start, stop) of its source become `after`."""

    module: str  # path from the repository's root
    line: int
    kind: str
    before: str
    after: str
    start: int
    stop: int
    key: str  # decides the place in the order

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.stop :]

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.module}:{self.line}: {before} -> {after}"


# -- breaks


def modules() -> list[Path]:
    """The modules that compute, in order."""
    found = (path for room in ROOMS for path in sorted((ROOT / "saelib" / room).rglob("*.py")))
    return [
        path
        for path in found
        if not path.name.endswith("_figures.py")
        and str(path.relative_to(ROOT / "saelib")) not in LEFT_OUT
    ]


def breaks_of(path: Path, seed: int) -> list[Break]:
    """Every break of a module."""
    source = path.read_bytes()
    starts = list(itertools.accumulate(map(len, source.splitlines(keepends=True)), initial=0))
    module = str(path.relative_to(ROOT))
    seen: dict[str, int] = {}
    out = []
    for node, kind, new in changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        before = source[start:stop].decode()
        text = f"{seed} {module} {kind} {before} {new}"
        number = seen[text] = seen.get(text, 0) + 1
        key = hashlib.sha256(f"{text} {number}".encode()).hexdigest()
        out.append(Break(module, node.lineno, kind, before, new, start, stop, key))
    return out


def ordered(breaks: list[Break]) -> list[Break]:
    """By key, the kinds in turn."""
    kinds: dict[str, list[Break]] = {}
    for one in sorted(breaks, key=lambda b: b.key):
        kinds.setdefault(one.kind, []).append(one)
    turns = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return [one for turn in turns for one in turn if one is not None]


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, kind, text to stand in its place) of each break below a node."""
    for node in counted(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            for op in COMPARISONS[type(node.ops[0])]:
                yield node, "comparison", with_field(node, ops=[op()])
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "constant", changed_constant(node.value)
        elif isinstance(node, ast.BinOp | ast.AugAssign):
            yield from changed_arithmetic(node)
            if isinstance(node, ast.AugAssign):
                yield node, "statement", "pass"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            yield node, "not", f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.BoolOp):
            other = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield node, "and, or", with_field(node, op=other())
        elif isinstance(node, ast.Call):
            yield from changed_call(node)
        elif in_place(node):
            yield node, "statement", "pass"


def changed_constant(value: int | float) -> str:
    if isinstance(value, int):
        return repr(value + 1)
    return repr(value * 2 if value else 1.0)


def changed_arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[tuple[ast.AST, str, str]]:
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    if any(is_text_or_list(side) for side in sides):
        return
    for kind, table in (("+, -", SUMS), ("*, /", PRODUCTS)):
        if type(node.op) in table:
            yield node, kind, with_field(node, op=table[type(node.op)]())


def is_text_or_list(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)


def changed_call(node: ast.Call) -> Iterator[tuple[ast.AST, str, str]]:
    name = called(node)
    if name in EXTREMES:
        other = EXTREMES[name]
        if isinstance(node.func, ast.Name):
            yield node.func, "min, max", other
        else:
            func = with_field(node.func, attr=other)[1:-1]
            yield node.func, "min, max", func
    first = node.args[:2]
    plain = len(first) == 2 and not any(isinstance(a, ast.Starred) for a in first)
    if plain and name not in SYMMETRIC and ast.dump(first[0]) != ast.dump(first[1]):
        swapped = [first[1], first[0], *node.args[2:]]
        yield node, "arguments", with_field(node, args=swapped)[1:-1]


def called(node: ast.Call) -> str:
    func = node.func
    return getattr(func, "id", getattr(func, "attr", ""))


def in_place(node: ast.AST) -> bool:
    """`a[i] = …`, `a.b = …` and `a.add_(…)`, standing as statements."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Subscript | ast.Attribute) for target in node.targets)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        name = called(node.value)
        return name.endswith("_") and not name.startswith("_")
    return False


def with_field(node: ast.AST, **fields: object) -> str:
    """The node's text with other fields; in parentheses where it is an expression."""
    new = deepcopy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    text = ast.unparse(new)
    return f"({text})" if isinstance(node, ast.expr) else text


def counted(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without those whose change is no break: see `is_no_code`."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "op", "ops", "ctx"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_no_code(child):
                yield child
                yield from counted(child)


def is_no_code(node: ast.AST) -> bool:
    """Texts and messages, versions and sizes of blocks, figures; types are of no account either."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        return name in SIZES or name.endswith("_VERSION") or name.startswith("__")
    if isinstance(node, ast.Call):
        return called(node) in ("warn", "print", "warning", "info", "progress_bar", "Column")
    if isinstance(node, ast.FunctionDef):
        arguments = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
        types = [*arguments, ast.unparse(node.returns) if node.returns else ""]
        draws = any(word in text for text in types for word in ("Figure", "Axes"))
        return draws or any(word in node.name for word in WORDS)
    return False


# -- tests


def imported(path: Path, names: set[str]) -> set[str]:
    """Modules of `names` that a file imports, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & names


def dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Choice:
    """Which test files belong to a module."""

    def __init__(self) -> None:
        package = sorted((ROOT / "saelib").rglob("*.py"))
        helpers = sorted((ROOT / "tests" / "helpers").glob("*.py"))
        names = {dotted(path, ROOT) for path in package}
        names |= {dotted(path, ROOT / "tests") for path in helpers}
        files = {dotted(path, ROOT): path for path in package}
        files |= {dotted(path, ROOT / "tests"): path for path in helpers}
        self.imports = {name: imported(path, names) for name, path in files.items()}
        tests = sorted((ROOT / "tests").rglob("test_*.py"))
        self.of_test = {path: imported(path, names) for path in tests}

    def tests(self, module: str) -> list[str]:
        """Test files of the module's room that import it, however indirectly, nearest first.

        By name, by their own imports, by as few modules between as there are.
        """
        room = Path(module).parts[1]
        steps = self._steps(dotted(ROOT / module, ROOT))
        near = {}
        for path, own in self.of_test.items():
            if path.relative_to(ROOT / "tests").parts[0] == room and path.stem not in NO_HELP:
                named = path.stem.endswith("test_" + Path(module).stem)
                near[path] = (
                    -1 if named else min((steps.get(name, FAR) for name in own), default=FAR)
                )
        chosen = sorted((n, str(path.relative_to(ROOT))) for path, n in near.items() if n < FAR)
        return [path for _, path in chosen]

    def _steps(self, name: str) -> dict[str, int]:
        """How many imports lead from each module to one; a module that cannot reach it is out."""
        steps, last = {name: 0}, {name}
        while last:
            last = {m for m, needs in self.imports.items() if needs & last and m not in steps}
            steps |= dict.fromkeys(last, max(steps.values()) + 1)
        return steps


# -- runs


class Copy:
    """The repository's package and tests in a temporary folder, and test runs in it.

    A run is a fork of this process, which has the large libraries imported and nothing of the
    package.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.sound: dict[str, bool] = {}  # tests that were run on unbroken code: whether they pass
        self.stamp = int(time.time())
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("saelib", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "data").mkdir()
        others = [p for p in ROOT.iterdir() if p.name not in ("saelib", "tests", "data")]
        for path in [*others, *(p for p in ROOT.glob("data/*") if p.name != "kernels")]:
            target = folder / path.relative_to(ROOT)
            if not path.name.startswith(".git") and not target.exists():
                target.symlink_to(path)

    def write(self, module: str, source: bytes) -> None:
        """Put a source in place, with a time of its own: no cached bytecode fits another."""
        path = self.folder / module
        path.write_bytes(source)
        self.stamp += 2
        os.utime(path, (self.stamp, self.stamp))

    def tried(self, one: Break, tests: list[str]) -> tuple[str, str]:
        """What became of a break, and by which test: killed, timed out or survived."""
        source = (self.folder / one.module).read_bytes()
        if source[one.start : one.stop].decode() != one.before:
            raise SystemExit(f"{one.module} changed while it was copied: start again")
        for test in tests:
            self.write(one.module, one.applied(source))
            try:
                status, failed = self.run(test)
            finally:
                self.write(one.module, source)
            if status in (0, NO_TESTS):
                continue
            if failed not in self.sound:
                options = () if "::" in failed or status is None else ("--collect-only",)
                self.sound[failed] = self.run(failed, *options)[0] in (0, NO_TESTS)
            if self.sound[failed]:
                return ("timed out" if status is None else "killed"), failed
            print(f"{failed} fails on unbroken code here: not counted", flush=True)
        return "survived", ""

    def run(self, test: str, *options: str) -> tuple[int | None, str]:
        """Pytest's exit status, None where it took longer than the limit; the test that failed."""
        note = self.folder / "failed.txt"
        note.write_text(test, encoding="utf-8")
        child = os.fork()
        if child == 0:
            try:
                os._exit(self._in_child(test, note, options))
            finally:  # never back into the parent's code
                os._exit(1)
        end = time.monotonic() + self.limit
        done = False
        try:
            while time.monotonic() < end:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    return os.waitstatus_to_exitcode(status), note.read_text(encoding="utf-8")
                time.sleep(0.05)
            return None, test
        finally:
            if not done:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def _in_child(self, test: str, note: Path, options: tuple[str, ...]) -> int:
        import pytest

        class Recorder:
            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                if report.failed:
                    note.write_text(report.nodeid, encoding="utf-8")

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(self.folder)
        with open(self.folder / "last_run.txt", "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["PYTHONPATH"] = str(self.folder)
        os.environ.pop("SAELIB_HOME", None)
        sys.path[:] = [str(self.folder), *(p for p in sys.path if not belongs_here(p))]
        quiet = ("-q", "-x", "--no-header")
        status = int(pytest.main([*quiet, *options, test], plugins=[Recorder()]))
        package = sys.modules.get("saelib")
        mine = package is None or Path(package.__file__ or "").is_relative_to(self.folder)
        return status if mine else NOT_THE_COPY


def belongs_here(path: str) -> bool:
    """Whether an entry of `sys.path` leads to the repository's own modules."""
    return not path or (Path(path).resolve().is_relative_to(ROOT) and "site-packages" not in path)


def import_libraries() -> None:
    """What every test process needs, imported once, before the forks."""
    import beartype
    import jaxtyping
    import matplotlib.pyplot
    import numpy
    import pandas
    import pytest
    import safetensors.torch
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama

    libraries = (beartype, jaxtyping, matplotlib, numpy, pandas, pytest, safetensors, transformers)
    assert all(libraries)
    torch.set_num_threads(1)


# -- the whole


def scores(rows: list[dict]) -> list[dict]:
    """Counts by room and kind, and of all."""

    def counts(room: str, kind: str, keep: Callable[[dict], bool]) -> dict:
        chosen = [row["result"] for row in rows if keep(row)]
        lived = chosen.count("survived")
        return {
            "room": room,
            "kind": kind,
            "breaks": len(chosen),
            "killed": chosen.count("killed"),
            "timed_out": chosen.count("timed out"),
            "survived": lived,
            "score": 1 - lived / len(chosen),
        }

    pairs = sorted({(Path(row["module"]).parts[1], row["kind"]) for row in rows})
    table = [
        counts(*pair, lambda r, pair=pair: (Path(r["module"]).parts[1], r["kind"]) == pair)
        for pair in pairs
    ]
    return [*table, counts("all", "all", lambda _: True)]


def chosen_breaks(args: argparse.Namespace) -> list[Break]:
    """The breaks asked for. Raises `SystemExit` where `--only` names no module that is broken."""
    paths = modules()
    if args.only:
        paths = [p for p in paths if any(one in str(p.relative_to(ROOT)) for one in args.only)]
        if not paths:
            raise SystemExit(f"--only {' '.join(args.only)}: no module of {', '.join(ROOMS)}")
    every = ordered([one for path in paths for one in breaks_of(path, args.seed)])
    return every[args.start : args.start + args.n]


def write_rows(path: Path, rows: list[dict]) -> None:
    """The rows as JSON; the file appears whole."""
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def earlier_rows(path: Path | None) -> list[dict]:
    """The rows of a run that was broken off: its breaks are not tried again."""
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=150, help="how many breaks")
    parser.add_argument("--start", type=int, default=0, help="the first break's place in the order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="part of a module's path")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds a test file may take")
    parser.add_argument("--list", action="store_true", help="print the breaks and run nothing")
    parser.add_argument(
        "--json",
        type=Path,
        help="write a row a break there; what stands there already is not tried again",
    )
    args = parser.parse_args()
    breaks = chosen_breaks(args)
    if args.list:
        print("\n".join(f"{one.kind:10}  {one}" for one in breaks))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no test is left running
    import_libraries()
    choice, rows = Choice(), earlier_rows(args.json)
    done = {tuple(row[name] for name in SAME) for row in rows}
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Copy(Path(folder), args.limit)
        for one in breaks:
            if tuple(getattr(one, name) for name in SAME) in done:
                continue
            start = time.monotonic()
            result, test = copy.tried(one, choice.tests(one.module))
            seconds = time.monotonic() - start
            print(f"{result:9}  {seconds:4.0f} s  {one.kind:10}  {one}  {test}", flush=True)
            kept = {k: v for k, v in asdict(one).items() if k not in ("start", "stop", "key")}
            rows.append(kept | {"result": result, "test": test})
            if args.json:
                write_rows(args.json, rows)
    for row in scores(rows):
        print("  ".join(f"{row[c]:.3g}" if c == "score" else str(row[c]) for c in COLUMNS))


if __name__ == "__main__":
    main()
