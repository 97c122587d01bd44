"""A guard over the notebooks: executed in order, with parameters, and shown as nbval compares.

nbval compares only what is there: a cell without a count or an output passes whatever it does. So
the guards below are checked first on small notebooks that each break one rule.
"""

import ast
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saelib.run import execution, profiles, source_notebooks

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.ipynb"))
PUBLISHED = sorted(FOLDER.glob("published/**/*.ipynb"))
PROFILES = sorted(FOLDER.glob("profiles/*.yaml"))
NAMES = [
    *("01_collect", "02_train_sae", "03_train_gated", "04_resampling", "05_layer_analysis"),
    "06_features",
]
IGNORED, CHECKED = "nbval-ignore-output", "nbval-check-output"
FORBIDDEN_TAGS = {"raises-exception", "nbval-skip", "nbval-raises-exception"}
SHOWING = {"plots.show", "show", "plots.save_figure", "save_figure"}
ABSOLUTE = re.compile(r"(?<![\w/:.<)\]])/[\w.-]+/[\w.-]+|\b[A-Z]:\\\w|(?<![\w~])~/\w")
QUOTED = re.compile(
    r'<div style="white-space:pre-wrap[^>]*>.*?</div>', re.DOTALL
)  # the panel's excerpts of pages
MAX_IGNORED = 0.3  # share of code cells whose output nbval may ignore
MIN_COMPARISONS = 3  # computed inequalities or counts in compared cells
HOLDS = re.compile(r"^(?:holds|DOES NOT HOLD): ", re.MULTILINE)  # checks that a study printed


def text_outputs(cell: Any) -> str:
    """Everything readable that a cell left behind: streams, text and HTML, not images."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(parts)


def has_png(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def tree(cell: Any) -> ast.Module:
    """A cell's code; IPython's own syntax (%, !) is no Python and is refused here."""
    return ast.parse(cell.source)


def nodes(cells: list[Any], *kinds: type) -> list[ast.AST]:
    return [n for c in cells for n in ast.walk(tree(c)) if isinstance(n, kinds)]


# --- the guards: each yields what is wrong --------------------------------------------------------


def executed_in_order(nb: Any) -> Iterator[str]:
    counts = [c.execution_count for c in nb.cells if c.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}"


def no_errors(nb: Any) -> Iterator[str]:
    for cell in source_notebooks.code_cells(nb):
        if any(o.output_type == "error" for o in cell.outputs):
            yield f"cell [{cell.execution_count}] ended in an error"


def claim_first(nb: Any) -> Iterator[str]:
    if (
        not nb.cells
        or nb.cells[0].cell_type != "markdown"
        or not nb.cells[0].source.startswith("# ")
    ):
        yield "the first cell is not markdown with a title"


def one_literal_parameters_cell(nb: Any) -> Iterator[str]:
    cells = [c for c in source_notebooks.code_cells(nb) if "parameters" in source_notebooks.tags(c)]
    if len(cells) != 1 or cells[0] is not source_notebooks.code_cells(nb)[0]:
        yield f"{len(cells)} parameters cells; expected one, the first code cell"
        return
    for node in tree(cells[0]).body:
        line = cells[0].source.splitlines()[node.end_lineno - 1]
        try:
            ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            yield f"parameters: {ast.unparse(node)!r} is not a literal"
        if not re.search(r"#\s*\w", line):
            yield f"parameters: {ast.unparse(node)!r} has no comment"


def no_injected_cell(nb: Any) -> Iterator[str]:
    if any(source_notebooks.INJECTED in source_notebooks.tags(c) for c in nb.cells):
        yield "a cell injected by papermill is left"
    if nb != execution.tidy(copy.deepcopy(nb)):
        yield "papermill's or the cells' clocks are left in the metadata: make refresh"


def no_library_code(nb: Any) -> Iterator[str]:
    cells = source_notebooks.code_cells(nb)
    yield from (f"class {n.name}" for n in nodes(cells, ast.ClassDef))
    for n in nodes(cells, ast.FunctionDef, ast.AsyncFunctionDef):
        if n.end_lineno - n.lineno + 1 > 5:
            yield f"def {n.name} is over 5 lines"


def no_absolute_path(nb: Any) -> Iterator[str]:
    for cell in source_notebooks.code_cells(nb):
        texts = [n.value for n in nodes([cell], ast.Constant) if isinstance(n.value, str)]
        texts.append(
            QUOTED.sub("", text_outputs(cell))
        )  # a page may hold an address, or a piece of one
        yield from (
            f"cell [{cell.execution_count}]: path {m.group()!r}"
            for t in texts
            for m in ABSOLUTE.finditer(t)
        )


def enough_is_compared(nb: Any) -> Iterator[str]:
    cells = source_notebooks.code_cells(nb)
    ignored = [c for c in cells if IGNORED in source_notebooks.tags(c)]
    checked = [c for c in cells if CHECKED in source_notebooks.tags(c)]
    if len(ignored) > MAX_IGNORED * len(cells):
        yield f"{len(ignored)} of {len(cells)} outputs are ignored"
    if not checked:
        yield f"no cell is tagged {CHECKED}"
    yield from (
        f"checked cell [{c.execution_count}] shows nothing"
        for c in checked
        if not text_outputs(c).strip()
    )
    compared = [c for c in cells if c not in ignored]
    comparisons = len(nodes(compared, ast.Compare))
    comparisons += sum(len(HOLDS.findall(text_outputs(c))) for c in compared)
    if comparisons < MIN_COMPARISONS:
        yield f"{comparisons} comparisons in compared cells, fewer than {MIN_COMPARISONS}"
    for cell in cells:
        if FORBIDDEN_TAGS & set(source_notebooks.tags(cell)) or re.search(
            r"NBVAL_|PYTEST_VALIDATE", cell.source
        ):
            yield (
                f"cell [{cell.execution_count}]: skipped or allowed to fail; "
                f"only {IGNORED} and {CHECKED} are used"
            )


def figures_are_saved_and_named(nb: Any) -> Iterator[str]:
    cells = source_notebooks.code_cells(nb)
    saving = [c for c in cells if any(ast.unparse(n.func) in SHOWING for n in nodes([c], ast.Call))]
    if not saving:
        yield "no cell saves a figure"
    yield from (
        f"cell [{c.execution_count}] does not print the file"
        for c in saving
        if ".png" not in text_outputs(c)
    )
    yield from (
        f"cell [{c.execution_count}] does not show the figure" for c in saving if not has_png(c)
    )


GUARDS = [
    executed_in_order,
    no_errors,
    claim_first,
    one_literal_parameters_cell,
    no_injected_cell,
    no_library_code,
    no_absolute_path,
    enough_is_compared,
    figures_are_saved_and_named,
]


def same_code(published: Any, source: Any) -> bool:
    """Is a published notebook the source as executed, papermill's cell apart?"""
    return [c.source for c in source_notebooks.code_cells(published)] == [
        c.source for c in source_notebooks.code_cells(source)
    ]


# --- the guards catch what they are for -----------------------------------------------------------


def good() -> Any:
    """A small notebook that every guard accepts."""
    png = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure size 1x1>"})
    name = new_output("stream", name="stdout", text="data/smoke/figures/02_loss.png\n")
    parameters = (
        'profile: str = "smoke"  # which profile\n'
        "sites = [2, -2]  # sites\n"
        "rates = [\n    0.1,\n]  # rates"
    )
    verdict = "assert fvu < 1 and l0 > 3\nassert n == 5\nprint('replicates')"
    cells = [
        new_markdown_cell("# A title\n\n**Claim.** It falls."),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell("def short(x):\n    return x", outputs=[]),
        new_code_cell("plots.show(fig, '02_loss', profile)", outputs=[png, name]),
        new_code_cell(
            verdict,
            metadata={"tags": [CHECKED]},
            outputs=[new_output("stream", name="stdout", text="replicates: 3/4 nats/token\n")],
        ),
    ]
    for count, cell in enumerate(cells[1:], 1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def change(index: int, **fields: Any) -> Callable[[Any], None]:
    return lambda nb: nb.cells[index].update(fields)


def tag(index: int, *names: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells[index].metadata.update(tags=list(names))


def prints(text: str) -> list[Any]:
    return [new_output("stream", name="stdout", text=text)]


BROKEN = [
    (executed_in_order, change(2, execution_count=None)),
    (executed_in_order, change(2, execution_count=7)),
    (no_errors, change(2, outputs=[new_output("error", ename="E", evalue="e", traceback=[])])),
    (claim_first, lambda nb: nb.cells.pop(0)),
    (claim_first, change(0, source="no title")),
    (one_literal_parameters_cell, tag(1)),
    (one_literal_parameters_cell, tag(2, "parameters")),
    (one_literal_parameters_cell, change(1, source="a = 1  # one\nb = 2 * a  # derived")),
    (one_literal_parameters_cell, change(1, source="a = 1")),
    (one_literal_parameters_cell, change(1, source="import os  # system")),
    (no_injected_cell, tag(2, "injected-parameters")),
    (no_injected_cell, lambda nb: nb.metadata.update(papermill={"input_path": "x"})),
    (
        no_injected_cell,
        lambda nb: nb.cells[2].metadata.update(execution={"iopub.execute_input": "2026"}),
    ),
    (no_library_code, change(2, source="class A:\n    x = 1")),
    (
        no_library_code,
        change(2, source="def f(x):\n    a = 1\n    b = 2\n    c = 3\n    d = 4\n    return x"),
    ),
    (no_absolute_path, change(2, source="open('/home/someone/file')")),
    (no_absolute_path, change(2, source="open('~/file')")),
    (no_absolute_path, change(2, outputs=prints("saved /srv/data/x.png"))),
    (no_absolute_path, change(2, outputs=prints("C:\\data"))),
    (
        no_absolute_path,
        change(2, outputs=prints('<div style="white-space:pre-wrap;x:y">a/b</div>/srv/data/x.png')),
    ),
    (enough_is_compared, tag(4)),
    (enough_is_compared, change(4, outputs=[])),
    (enough_is_compared, change(4, source="assert n == 5")),
    (enough_is_compared, lambda nb: [tag(i, IGNORED)(nb) for i in (2, 3)]),
    (enough_is_compared, tag(2, "nbval-skip")),
    (enough_is_compared, tag(2, "raises-exception")),
    (enough_is_compared, change(2, source="# NBVAL_IGNORE_OUTPUT\nx = 1")),
    (figures_are_saved_and_named, change(3, source="x = 1")),
    (figures_are_saved_and_named, change(3, outputs=prints("data/smoke/figures/02_loss.png"))),
    (figures_are_saved_and_named, lambda nb: nb.cells[3].outputs.pop()),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.__name__)
def test_a_good_notebook_passes(guard):
    assert list(guard(good())) == []


def test_checks_that_a_study_printed_count_as_comparisons():
    nb = good()
    nb.cells[4].source = "print(finding.checks(study.checks(curves)))"
    nb.cells[4].outputs = prints("holds: a\nholds: b\n")
    assert list(enough_is_compared(nb)) != []
    nb.cells[4].outputs = prints("holds: a\nDOES NOT HOLD: b\nholds: c\n")
    assert list(enough_is_compared(nb)) == []


@pytest.mark.parametrize(
    ("guard", "breaks"), BROKEN, ids=[f"{g.__name__}-{i}" for i, (g, _) in enumerate(BROKEN)]
)
def test_a_broken_notebook_is_caught(guard, breaks):
    nb = good()
    breaks(nb)
    assert list(guard(nb)) != []


def test_every_guard_has_a_notebook_it_refuses():
    assert {g for g, _ in BROKEN} == set(GUARDS)


def test_a_published_copy_may_differ_in_parameters_and_outputs_but_not_in_code():
    published = good()
    published.cells.insert(
        2, new_code_cell("profile = 'full'", metadata={"tags": ["injected-parameters"]})
    )
    published.cells[4].outputs = []
    assert same_code(published, good())
    published.cells[3].source += "\nx = 1"
    assert not same_code(published, good())


# --- the notebooks --------------------------------------------------------------------------------


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_the_notebooks_are_there():
    assert [p.stem for p in SOURCES][: len(NAMES)] == NAMES


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.__name__)
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_passes_every_guard(path, guard):
    assert list(guard(read(path))) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_s_literals_are_the_smoke_profile(path):
    defaults = source_notebooks.parameters(path)
    assert defaults["profile"] == "smoke"
    smoke = profiles.resolve_profile("smoke")[path]
    assert {k: v for k, v in smoke.items() if defaults[k] != v} == {}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_profile_fits_the_notebooks(profile):
    assert list(profiles.resolve_profile(profile.stem)) == SOURCES


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_a_published_copy_equals_its_source_in_code(path):
    assert same_code(read(path), read(FOLDER / path.name))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_published_copy_has_no_error_and_no_path_of_a_machine(path):
    published = read(path)
    assert list(no_errors(published)) == []
    assert list(no_absolute_path(published)) == []
