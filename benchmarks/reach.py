"""Which tests run which lines of the package: each test file runs once under `coverage`."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import coverage
import pytest

COMPOUND = (
    *(ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)
NO_TEST = ""  # the context of what runs between tests: imports and fixtures of more than one test


class Recorder:
    """A pytest plugin: lines and seconds of each test, and whether it passes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        options = {"data_file": None, "config_file": False, "source": [str(folder / "saelib")]}
        self.coverage = coverage.Coverage(**options)
        self.coverage.start()
        self.coverage.switch_context(NO_TEST)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.coverage.switch_context(NO_TEST)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: object, request: object) -> object:
        """What runs in a fixture of several tests is no one test's."""
        if fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(NO_TEST)
        try:
            return (yield)
        finally:
            self.coverage.switch_context(request._pyfuncitem.nodeid)

    def pytest_runtest_logreport(self, report: object) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def record(self) -> dict:
        """{"seconds": {test: s}, "lines": {module: {line: tests}}}, of tests that pass."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            str(Path(file).relative_to(self.folder)): {
                str(line): sorted(set(tests) - self.failed)
                for line, tests in sorted(data.contexts_by_lineno(file).items())
            }
            for file in data.measured_files()
        }
        seconds = {test: s for test, s in self.seconds.items() if test not in self.failed}
        return {"seconds": seconds, "lines": lines}


class Reach:
    """The tests that run a line, by file.

    `record` runs a test file and returns what `Recorder.record` says of it. Kept in `folder`, for
    as long as neither the package nor the tests' helpers nor the test file change.
    """

    def __init__(self, root: Path, folder: Path, record: Callable[[str], dict]) -> None:
        self.root, self.folder, self.record = root, folder, record
        self.read: dict[str, dict] = {}
        shared = [*(root / "saelib").rglob("*.py"), *(root / "tests" / "helpers").rglob("*.py")]
        shared += (root / "tests").rglob("conftest.py")
        self.shared = digest(sorted(shared))

    def of_file(self, test: str) -> dict:
        """What a test file runs."""
        if test not in self.read:
            path = self._path(test)
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(f".{os.getpid()}")
                temporary.write_text(json.dumps(self.record(test)), encoding="utf-8")
                temporary.replace(path)
            self.read[test] = json.loads(path.read_text(encoding="utf-8"))
        return self.read[test]

    def is_known(self, test: str) -> bool:
        return test in self.read or self._path(test).exists()

    def _path(self, test: str) -> Path:
        return self.folder / f"{self.shared[:8]}{digest([self.root / test])[:24]}.json"

    def tests(self, test: str, module: str, lines: range) -> list[str]:
        """Tests of a file that run one of the lines, the quickest first.

        All of its tests where a line runs on import or in a fixture that tests share.
        """
        reached = self.of_file(test)
        by_line = reached["lines"].get(module, {})
        found = {name for line in lines for name in by_line.get(str(line), [])}
        if NO_TEST in found:
            found = set(reached["seconds"])
        return sorted(found, key=lambda name: (reached["seconds"][name], name))


def digest(paths: list[Path]) -> str:
    """A hash of some files' contents."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def lines_about(source: bytes, line: int) -> range:
    """The lines of the innermost statement at a line; of a compound one, its head's."""
    spans = [span for span in statement_spans(ast.parse(source)) if line in span]
    return min(spans, key=len, default=range(line, line + 1))


def statement_spans(tree: ast.AST) -> Iterator[range]:
    for node in ast.walk(tree):
        if isinstance(node, COMPOUND):
            first = node.body[0] if hasattr(node, "body") else node.cases[0].pattern
            yield range(node.lineno, max(first.lineno, node.lineno + 1))
        elif isinstance(node, ast.stmt):
            yield range(node.lineno, node.end_lineno + 1)
