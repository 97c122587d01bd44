"""Do the tests see a wrong line? One-line breaks of the modules that compute, one at a time.

python benchmarks/mutants.py --n 60 --json benchmarks/results/mutants.json
python benchmarks/mutants.py --only saelib/measure/pursuit.py --n 1000 --list

The package is copied to a temporary folder and broken there: a comparison swapped, a constant
changed, + for -, * for /, a `not` dropped, `and` for `or`, min for max, a statement that changes
something in place left out, two arguments swapped. The tests of the same room that run the broken
line, nearest first, run until one fails; which those are, `reach` finds out by `coverage`. Breaks
stand in an order that the seed and their own text decide: `--n 120` repeats `--n 60` and goes on.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from reach import Reach, Recorder, lines_about

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
# Plugins that no test of these rooms needs; one takes two seconds to import.
UNUSED_PLUGINS = "-p no:cacheprovider -p no:nbval -p no:anyio -p no:xdist"
NO_TESTS, NOT_THE_COPY = 5, 97  # exit statuses of a test process
WAITING = 20  # a test process may wait so many times the processor time that it may use
RECORDING = 5  # a whole file, its lines traced, may take as many times longer
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


def in_room(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"saelib.{room}.")


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

    def below(self, room: str) -> list[str]:
        """Modules that a room needs and that lead neither to it nor to a room after it."""
        own = {name for path in modules() if in_room(name := dotted(path, ROOT), room)}
        later = {n for n in self.imports for r in ROOMS[ROOMS.index(room) :] if in_room(n, r)}
        leading = set().union(*(self._steps(name) for name in later))
        needed = own
        while more := set().union(*(self.imports[name] for name in needed)) - needed:
            needed = needed | more
        left_out = {dotted(ROOT / "saelib" / path, ROOT) for path in LEFT_OUT}
        return sorted(needed - leading - left_out)

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

    A run is a fork of this process, which has imported the large libraries and, of the package,
    what stands below the room whose modules are broken. Nothing is imported twice in one process:
    checkers of types keep the classes that they saw first.
    """

    def __init__(self, folder: Path, limit: float, kept: Path | None) -> None:
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
        self.reach = Reach(folder, kept or folder / "reach", self.reached)

    def write(self, module: str, source: bytes) -> None:
        """Put a source in place, with a time of its own: no cached bytecode fits another."""
        path = self.folder / module
        path.write_bytes(source)
        self.stamp += 2
        os.utime(path, (self.stamp, self.stamp))

    def tried(self, one: Break, tests: list[str]) -> tuple[str, str]:
        """What became of a break, and by which test: killed, timed out or survived.

        `tests` are files, the nearest first. That one runs as a whole; of others only the tests
        that run the broken line, beginning with those of the files whose reach is known.
        """
        source = (self.folder / one.module).read_bytes()
        if source[one.start : one.stop].decode() != one.before:
            raise SystemExit(f"{one.module} changed while it was copied: start again")
        for names in self._parts(one.module, lines_about(source, one.line), tests):
            if names and (found := self._outcome(one, source, names)):
                return found
        return "survived", ""

    def _parts(self, module: str, lines: range, tests: list[str]) -> Iterator[list[str]]:
        """The tests to ask, part by part."""
        nearest = [test for test in tests[:1] if not self.reach.is_known(test)]
        yield nearest
        known = [test for test in tests if self.reach.is_known(test)]
        yield [name for test in known for name in self.reach.tests(test, module, lines)]
        for test in tests:
            if test not in (*nearest, *known):
                yield self.reach.tests(test, module, lines)

    def _outcome(self, one: Break, source: bytes, names: list[str]) -> tuple[str, str] | None:
        """What became of a break by some tests; None where they pass, or fail on sound code too."""
        self.write(one.module, one.applied(source))
        try:
            status, failed = self.run(names, self.limit)
        finally:
            self.write(one.module, source)
        if status in (0, NO_TESTS):
            return None
        if failed not in self.sound:
            options = () if "::" in failed or status is None else ("--collect-only",)
            self.sound[failed] = self.run([failed], self.limit, options)[0] in (0, NO_TESTS)
        if self.sound[failed]:
            return ("timed out" if status is None else "killed"), failed
        print(f"{failed} fails on unbroken code here: not counted", flush=True)
        rest = names[names.index(failed) + 1 :] if failed in names else []
        return self._outcome(one, source, rest) if rest else None

    def reached(self, test: str) -> dict:
        """What the tests of a file run, of unbroken code: see `reach.Recorder.record`."""
        out = self.folder / "reached.json"
        out.unlink(missing_ok=True)
        status, _ = self.run([test], RECORDING * self.limit, record=out)
        if not out.exists():
            raise SystemExit(f"{test} does not end on unbroken code (status {status})")
        return json.loads(out.read_text(encoding="utf-8"))

    def run(
        self,
        tests: list[str],
        limit: float,
        options: tuple[str, ...] = ("-x",),
        record: Path | None = None,
    ) -> tuple[int | None, str]:
        """Pytest's exit status, None where it went over the limit; the test that failed.

        `record`: a file for what each test runs; no failure stops the tests then.
        """
        note = self.folder / "failed.txt"
        note.write_text(tests[0].partition("::")[0], encoding="utf-8")
        child = os.fork()
        if child == 0:
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
                os._exit(self._in_child(tests, note, options, record))
            finally:  # never back into the parent's code
                os._exit(1)
        end = time.monotonic() + WAITING * limit
        done = False
        try:
            while time.monotonic() < end:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    code = os.waitstatus_to_exitcode(status)
                    return None if code == -signal.SIGXCPU else code, note.read_text("utf-8")
                time.sleep(0.05)
            return None, note.read_text("utf-8")
        finally:
            if not done:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def _in_child(
        self, tests: list[str], note: Path, options: tuple[str, ...], record: Path | None
    ) -> int:
        class Noted:
            def pytest_runtest_logstart(self, nodeid: str) -> None:
                note.write_text(nodeid, encoding="utf-8")

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(self.folder / "last_run.txt", "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        # the package's types are checked from `enter` on, not by the option of pyproject
        arguments = ["-q", "--no-header", "-o", f"addopts={UNUSED_PLUGINS}"]
        if record:
            recorder = Recorder(self.folder)
            status = int(pytest.main([*arguments, *tests], plugins=[recorder]))
            record.write_text(json.dumps(recorder.record()), encoding="utf-8")
        else:
            status = int(pytest.main([*arguments, *options, *tests], plugins=[Noted()]))
        package = sys.modules.get("saelib")
        mine = package is None or Path(package.__file__ or "").is_relative_to(self.folder)
        return status if mine else NOT_THE_COPY

    def enter(self) -> None:
        """Make the folder's package the one that this process imports, types checked."""
        os.chdir(self.folder)
        os.environ["PYTHONPATH"] = str(self.folder)
        os.environ.pop("SAELIB_HOME", None)
        sys.path[:] = [str(self.folder), *(p for p in sys.path if not belongs_here(p))]
        *packages, checker = checked_packages(self.folder / "pyproject.toml")
        install_import_hook(packages, checker)


def checked_packages(project: Path) -> list[str]:
    """The packages whose types the tests check and, last, the checker: from pyproject's options."""
    options = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    values = (one.partition("=") for one in options["addopts"].split())
    return next(value.split(",") for name, _, value in values if name == "--jaxtyping-packages")


def belongs_here(path: str) -> bool:
    """Whether an entry of `sys.path` leads to the repository's own modules."""
    return not path or (Path(path).resolve().is_relative_to(ROOT) and "site-packages" not in path)


def import_libraries() -> None:
    """What every test process needs, imported once, before the forks."""
    import beartype
    import hypothesis
    import hypothesis.extra.numpy
    import jaxtyping
    import matplotlib.pyplot
    import numpy
    import pandas
    import safetensors.torch
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama

    libraries = (beartype, hypothesis, jaxtyping, matplotlib, numpy, pandas, pytest)
    libraries += (safetensors, transformers)
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


def in_rooms(breaks: list[Break], rooms: Sequence[str], choice: Choice) -> Iterator[Break]:
    """The breaks room by room; what stands below a room is imported before its first."""
    for room in sorted(rooms, key=ROOMS.index):
        own = [one for one in breaks if Path(one.module).parts[1] == room]
        if own:
            for name in choice.below(room):
                importlib.import_module(name)
            gc.freeze()  # a fork need not look through them again
        yield from own


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
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS, help="of these alone")
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="part of a module's path")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="most processor seconds for the tests of a break"
    )
    parser.add_argument(
        "--reach",
        type=lambda text: Path(text).absolute(),
        help="keep there which tests run which lines",
    )
    parser.add_argument("--list", action="store_true", help="print the breaks and run nothing")
    parser.add_argument(
        "--json",
        type=lambda text: Path(text).absolute(),
        help="write a row a break there; what stands there already is not tried again",
    )
    args = parser.parse_args()
    breaks = chosen_breaks(args)
    if args.list:
        print("\n".join(f"{one.kind:10}  {one}" for one in breaks))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    os.environ["SAELIB_HEADLESS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no test is left running
    import_libraries()
    rows = earlier_rows(args.json)
    done = {tuple(row[name] for name in SAME) for row in rows}
    left = [one for one in breaks if tuple(getattr(one, name) for name in SAME) not in done]
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        choice, copy = Choice(), Copy(Path(folder), args.limit, args.reach)
        copy.enter()
        for one in in_rooms(left, args.rooms, choice):
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
