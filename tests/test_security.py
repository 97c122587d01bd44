"""SECURITY.md promises only what a test holds, and names it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROMISED, _, _ = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Not promised")
NAMED = re.findall(r"^- `(tests/\S+\.py)::(\w+)`$", PROMISED, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_is_there(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test():
    promises = re.split(r"^\*\*", PROMISED.partition("## Promised")[2], flags=re.MULTILINE)[1:]
    assert len(promises) >= 7
    assert [promise for promise in promises if "\n- `tests/" not in promise] == []
    assert len(NAMED) == PROMISED.count("\n- ")
