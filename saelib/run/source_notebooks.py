"""The source notebooks: which there are, their cells, and the defaults in their parameters cell.

They are read as plain JSON, so that a refused request answers at once, without nbformat.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelib.config import ConfigError
from saelib.env import root
from saelib.files import read_json

INJECTED = "injected-parameters"  # papermill's tag on the cell it adds
COPY = r".*-Copy\d+"  # what Jupyter calls a copy of a notebook
PARAMETERS_TAG = "parameters"


def notebooks_dir() -> Path:
    """Folder of the source notebooks and of `profiles/`."""
    return root() / "notebooks"


def sources(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks in reading order; `names` selects by name, number or path (`02`, a file).

    Copies that Jupyter made are left out. Raises ConfigError for a name that fits none or several.
    """
    paths = sorted(p for p in notebooks_dir().glob("*.ipynb") if not p.name.startswith("."))
    paths = [path for path in paths if not re.fullmatch(COPY, path.stem)]
    chosen = {_selected(name, paths) for name in names}
    return [path for path in paths if path in chosen or not names]


def _selected(name: str, paths: Sequence[Path]) -> Path:
    stem = Path(name).name.removesuffix(".ipynb")
    hits = [path for path in paths if stem in (path.stem, path.stem.split("_")[0])]
    if len(hits) != 1:
        accepted = ", ".join(path.stem for path in paths) or "none there"
        raise ConfigError(f"notebook {name!r}: accepted: {accepted}")
    return hits[0]


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook of format 4 with the source of each cell as one string.

    Raises ValueError naming the file where it is damaged.
    """
    notebook = read_json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path}: no notebook of format 4 (it has no list of cells)")
    for i, cell in enumerate(notebook["cells"]):
        if not _is_cell(cell):
            raise ValueError(f"{path}: damaged, cell {i} is no cell of a notebook")
        cell["source"] = "".join(cell["source"])  # a list of lines on disk, or one string
    return notebook


def require_valid(path: Path) -> None:
    """Raise ValueError naming the file where a notebook is damaged or not as its format asks."""
    import nbformat  # takes long to import: only where a notebook is shown

    content = read_notebook(path)
    try:
        nbformat.validate(nbformat.from_dict(content))
    except (nbformat.ValidationError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: no notebook of format 4 ({reason})") from error


def _is_cell(cell: Any) -> bool:
    """Whether this has what every reader of cells takes for granted."""
    if not isinstance(cell, dict) or not isinstance(cell.get("metadata"), dict):
        return False
    if not isinstance(cell.get("cell_type"), str):
        return False
    tagged = cell["metadata"].get("tags", [])
    if not isinstance(tagged, list) or not all(isinstance(tag, str) for tag in tagged):
        return False
    source = cell.get("source")
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return False
    outputs = cell.get("outputs", []) if cell.get("cell_type") == "code" else []
    return isinstance(outputs, list) and all(isinstance(output, dict) for output in outputs)


def tags(cell: Mapping[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def code_cells(notebook: Mapping[str, Any]) -> list[Any]:
    """The code cells of a notebook without the one papermill injects."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if INJECTED not in tags(cell)]


def parameters(path: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`.

    Raises ConfigError where there is not exactly one such cell, or where it holds anything but
    literal assignments.
    """
    cells = [cell for cell in code_cells(read_notebook(path)) if PARAMETERS_TAG in tags(cell)]
    if len(cells) != 1:
        raise ConfigError(
            f"{path.name}: {len(cells)} cells tagged 'parameters'; expected exactly one"
        )
    try:
        nodes = ast.parse(cells[0]["source"]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as ast.parse says
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{path.name}: parameters cell: no Python ({reason})") from error
    return dict(_literal(path, node) for node in nodes)


def _literal(path: Path, node: ast.stmt) -> tuple[str, Any]:
    line = ast.unparse(node)
    try:
        match node:
            case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
                return name, ast.literal_eval(node.value)
        raise ValueError
    except ValueError:
        raise ConfigError(
            f"{path.name}: parameters cell, {line!r}: expected name = literal, one a line"
        ) from None
