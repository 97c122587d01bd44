"""Little notebooks and profiles in a workbook folder, for tests of what runs them."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """profile: str = "smoke"  # set by the driver
lr: float = 1e-3  # learning rate
steps: int = 3  # steps
clip: bool = False  # clip gradients
model: str = "tiny"  # which model
sites = [2, "middle", -2]  # which sites
lambdas: list[float] = [0.5, 1.0]  # L1 coefficients
"""


def write_notebook(
    home: Path, name: str, parameters: str = PARAMETERS, code: str = "print(lr)"
) -> Path:
    """A source notebook: claim, parameters, one cell."""
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    path = home / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[*cells, new_code_cell(code)]), path)
    return path


def write_profile(home: Path, text: str, name: str = "smoke") -> None:
    (home / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)


def stdout_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")
