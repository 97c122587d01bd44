"""A notebook is executed by the Python that runs the package, whatever Jupyter finds by name."""

import json
import sys
from pathlib import Path

from helpers.toy_workbook import stdout_of, write_notebook

from saelib.run.execution import execute

# not the path itself: paths of this machine do not leave a notebook
CELL = "import sys\nfrom pathlib import Path\nprint(Path(sys.executable).resolve().parts)"


def test_a_kernel_of_another_python_is_not_taken_by_its_name(home, tmp_path, monkeypatch):
    other = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    argv = ["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    other.write_text(json.dumps({"argv": argv, "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    done = tmp_path / "done.ipynb"
    execute(write_notebook(home, "01_a", code=CELL), done, {})
    assert stdout_of(done) == f"{Path(sys.executable).resolve().parts}\n"
    assert "other" not in done.read_text()


def test_no_module_beside_a_notebook_takes_the_place_of_one_that_the_kernel_needs(home, tmp_path):
    for name in ("ipykernel_launcher", "ipykernel", "matplotlib"):
        (home / "notebooks" / f"{name}.py").write_text("open('was-executed', 'w')\n")
    done = tmp_path / "done.ipynb"
    execute(write_notebook(home, "01_a", code="import matplotlib.pyplot\nprint(1)"), done, {})
    assert stdout_of(done) == "1\n"
    assert not (home / "notebooks" / "was-executed").exists()
