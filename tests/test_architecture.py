"""The package keeps its shape: floors, bare core modules, small functions, no hidden execution.

The tests keep theirs: none imports another, and what they share lies in `helpers`.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.order import LONGEST, longest_first

import saelib

PACKAGE = Path(saelib.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
# Folders are floors: a folder imports the modules beside them, those named before it, and itself
# without a circle.
FOLDERS = ("text", "activations", "sae", "measure", "show", "study", "run")
MEDIAN_FUNCTION, LONG_FUNCTION = 12, 30  # lines: half of all functions, and nine of ten
MODULE_LINES = 350  # of code
METHODS = 20  # of a class
WORDS_OF_SPEECH = frozenset(
    (
        *("at", "of", "found", "told", "said", "known", "made", "own"),
        *("odd", "every", "part", "mine", "going", "words", "looks"),
    )
)
CORE_MAY_IMPORT = {
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "saelib",
    *sys.stdlib_module_names,
}
CORE_MAY_IMPORT |= {
    "huggingface_hub"
}  # comes with transformers, which cannot be imported without it
CORE_MAY_IMPORT |= {"triton"}  # comes with torch for CUDA; done without elsewhere


def dotted(path: Path) -> str:
    """A module's name within the package: "sae.sparse.c", of a folder the folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(p): p for p in MODULES}


def floor(module: str) -> int:
    """Place of a module's folder in `FOLDERS`.

    Modules beside the folders lie below all of them, the command line above.
    """
    first = module.partition(".")[0]
    if first == "__main__":
        return len(FOLDERS)
    return FOLDERS.index(first) if first in FOLDERS else -1


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)


def siblings(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports, by `dotted`; no relative imports."""
    found = set()
    for name in imports(tree):
        assert not name.startswith("."), "relative import"
        parts = name.split(".")
        if parts[0] == "saelib":
            known = [".".join(parts[1:n]) for n in range(len(parts), 0, -1)]
            found.add(next(module for module in known if module in NAMES))
    return found - {""}


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function from `def` on, its docstring apart."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(
        getattr(first.value, "value", None), str
    )
    doc = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - doc


def code_lines(source: str) -> int:
    """Lines that hold code: blank lines, comments and docstrings left out."""
    documented = (
        n
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    docs = [n.body[0] for n in documented if ast.get_docstring(n, clean=False) is not None]
    left_out = {line for d in docs for line in range(d.lineno, d.end_lineno + 1)}
    empty = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = (
        t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in empty
    )
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - left_out)


def offences(tree: ast.Module) -> Iterator[str]:
    """What no module may hold, each with its line."""
    banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for name in imports(tree):
        if name.split(".")[0] in banned:
            yield f"import of {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"
        if (
            isinstance(node, ast.ExceptHandler)
            and len(node.body) == 1
            and isinstance(node.body[0], ast.Pass)
        ):
            yield f"line {node.lineno}: an exception passed over in silence"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            yield f"line {node.lineno}: {ast.unparse(node)} (a pickle)"
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            yield f"line {node.value.lineno}: allow_pickle"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        ):
            yield f"line {node.lineno}: {node.func.id}"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_folder_is_a_floor():
    assert {p.parent.relative_to(PACKAGE).parts[0] for p in MODULES if p.parent != PACKAGE} == set(
        FOLDERS
    )


@pytest.mark.parametrize("module", NAMES)
def test_a_module_imports_its_own_folder_or_lower_ones(module):
    for name in siblings(parse(NAMES[module])):
        assert floor(name) <= floor(module), f"{module} imports {name}"


def test_no_folder_has_a_circle():
    graph = {name: siblings(parse(path)) - {name} for name, path in NAMES.items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("module", [name for name in NAMES if name.startswith("sae")])
def test_the_science_needs_torch_transformers_safetensors_and_numpy_alone(module):
    tree = parse(NAMES[module])
    assert {name.split(".")[0] for name in imports(tree)} <= CORE_MAY_IMPORT
    assert all(floor(name) == -1 or name.startswith("sae") for name in siblings(tree))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_opens_with_what_it_is(path):
    assert ast.get_docstring(parse(path))


def bindings(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives to arguments, variables and loop variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def methods(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(class, number of its methods) of every class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, sum(isinstance(child, ast.FunctionDef) for child in node.body)


def packed(tree: ast.Module) -> int:
    """Assignments of several values to several names that are no swap: each is two statements."""
    pairs = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    )
    return sum(
        {ast.unparse(t) for t in n.targets[0].elts} != {ast.unparse(v) for v in n.value.elts}
        for n in pairs
    )


def test_functions_are_small():
    functions = [n for p in MODULES for n in ast.walk(parse(p)) if isinstance(n, ast.FunctionDef)]
    lengths = sorted(map(body_lines, functions))
    assert statistics.median(lengths) <= MEDIAN_FUNCTION
    assert lengths[int(0.9 * len(lengths))] <= LONG_FUNCTION


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_is_read_in_one_sitting(path):
    assert code_lines(path.read_text(encoding="utf-8")) <= MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_class_has_few_methods(path):
    assert [name for name, count in methods(parse(path)) if count > METHODS] == []


def test_names_are_nouns():
    names = [name for path in MODULES for name in bindings(parse(path))]
    share = sum(name in WORDS_OF_SPEECH for name in names) / len(names)
    assert share < 0.01, f"{share:.1%} of all names are words of speech, not things"


def test_a_statement_holds_one_thought():
    lines = sum(code_lines(path.read_text(encoding="utf-8")) for path in MODULES)
    assert sum(packed(parse(path)) for path in MODULES) <= lines / 200


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_pickle_no_hidden_exception_no_unfinished_business(path):
    assert list(offences(parse(path))) == []
    text = path.read_text(encoding="utf-8")
    assert not [
        word for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK") if word in text
    ]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import dump",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept Exception:\n    pass",
        "eval('1')",
    ],
)
def test_the_offences_are_found(code):
    assert list(offences(ast.parse(code)))


def test_imports_are_found_inside_functions_too_and_relative_ones_are_refused():
    tree = ast.parse("def f():\n    from saelib.sae import losses, base\n    import saelib.files")
    assert siblings(tree) == {"sae.losses", "sae.base", "files"}
    with pytest.raises(AssertionError, match="relative import"):
        siblings(ast.parse("from .store import Store"))


def test_a_function_s_length_leaves_its_docstring_out():
    function = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body[0]
    assert body_lines(function) == 2


def test_code_lines_leave_prose_out():
    assert (
        code_lines(
            '"""Doc."""\n\n# why\ndef f():\n    """Doc."""\n    return (1,\n            2)\n'
        )
        == 3
    )


def test_no_two_test_files_share_a_name():
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))  # pytest imports them by that name alone


def shadowed(folder: Path) -> set[str]:
    """Scripts of a folder with a library's name: each beside them imports it in its place."""
    libraries = {*packages_distributions(), *sys.stdlib_module_names}
    return {path.stem for path in folder.glob("*.py")} & libraries


@pytest.mark.parametrize("folder", ["benchmarks", "tools", "examples"])
def test_no_script_has_the_name_of_a_library(folder):
    assert not shadowed(TESTS.parent / folder)


def test_a_script_with_the_name_of_a_library_is_found(tmp_path):
    for name in ("coverage", "json", "opening"):
        (tmp_path / f"{name}.py").touch()
    assert shadowed(tmp_path) == {"coverage", "json"}


def imports_of_tests(source: str) -> list[str]:
    """Imports of test modules, by the code itself or by a script in it that a process runs."""
    return re.findall(r"^[ \t]*((?:from|import) test_\w+)", source, re.MULTILINE)


def test_no_test_module_is_imported():
    found = {p.name: imports_of_tests(p.read_text(encoding="utf-8")) for p in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_imports_of_tests_are_found_inside_scripts_too():
    source = 'CHILD = """\nimport sys\nfrom test_store import D\n"""\nimport test_live\n'
    assert imports_of_tests(source) == ["from test_store", "import test_live"]


def test_the_files_that_begin_first_are_there():
    assert [name for name in LONGEST if not list(TESTS.rglob(name))] == []


def test_long_files_begin_first_and_the_rest_keeps_its_order():
    names = ["test_b.py", LONGEST[1], "test_a.py", LONGEST[0], LONGEST[1]]
    items = [SimpleNamespace(path=Path(name)) for name in names]
    longest_first(items)
    found = [item.path.name for item in items]
    assert found == [LONGEST[0], LONGEST[1], LONGEST[1], "test_b.py", "test_a.py"]


def test_what_tests_share_lies_in_helpers():
    beside = {path.name for path in TESTS.rglob("*.py") if path.parent != TESTS / "helpers"}
    assert [name for name in beside if not name.startswith("test_")] == ["conftest.py"]


def marked_elsewhere(path: Path) -> bool:
    """Is something marked slow where `make slow`, which reads the files, does not look?"""
    text = path.read_text(encoding="utf-8")
    marks = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)]
    is_read = path.name.startswith("test_") and "mark.slow" in text
    return any(n.attr == "slow" for n in marks) and not is_read


def test_slow_tests_are_marked_where_make_slow_looks():
    assert [p.name for p in TESTS.rglob("*.py") if marked_elsewhere(p)] == []


@pytest.mark.parametrize(
    ("name", "code", "elsewhere"),
    [
        ("test_a.py", "@pytest.mark.slow\ndef test(): ...", False),
        ("test_a.py", "pytestmark = [pytest.mark.slow]", False),
        ("test_a.py", "slow = 1", False),
        ("test_a.py", "from pytest import mark as m\npytestmark = m.slow", True),
        ("cases.py", "LONG = pytest.mark.slow", True),
    ],
)
def test_marks_that_make_slow_would_miss_are_found(tmp_path, name, code, elsewhere):
    (tmp_path / name).write_text(code)
    assert marked_elsewhere(tmp_path / name) == elsewhere
