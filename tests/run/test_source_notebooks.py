"""The source notebooks: which is meant, and what their parameters cell may hold."""

import nbformat
import pytest
from helpers.toy_workbook import write_notebook
from nbformat.v4 import new_code_cell, new_notebook

from saelib.config import ConfigError
from saelib.run.source_notebooks import parameters, sources


def test_parameters_are_the_literals_of_the_tagged_cell(home):
    found = parameters(write_notebook(home, "01_a", "a: int = 3  # three\nb = [-1, 'x']  # two\n"))
    assert found == {"a": 3, "b": [-1, "x"]}


@pytest.mark.parametrize(
    "line", ["b = 2 * a", "import os", "print(1)", "a.b = 1", "c: int", "a = b = 1", "a += 1"]
)
def test_anything_but_a_literal_in_the_parameters_cell_is_refused(home, line):
    with pytest.raises(ConfigError, match="expected name = literal"):
        parameters(write_notebook(home, "01_a", f"a = 1\n{line}\n"))


def test_a_notebook_needs_exactly_one_parameters_cell(home):
    path = home / "notebooks" / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), path)
    with pytest.raises(ConfigError, match="0 cells tagged 'parameters'"):
        parameters(path)


@pytest.mark.parametrize("name", ["02", "02_b", "02_b.ipynb", "notebooks/02_b.ipynb"])
def test_a_notebook_is_chosen_by_number_name_or_path(home, name):
    for stem in ("01_a", "02_b"):
        write_notebook(home, stem)
    assert [p.stem for p in sources([name])] == ["02_b"]


def test_copies_that_jupyter_made_are_no_notebooks_of_the_workbook(home):
    path = write_notebook(home, "02_train")
    write_notebook(home, "02_train-Copy1")
    assert sources() == sources(["02"]) == [path]
