"""With model and text on the disk no stage asks the network, also where nothing forbids it."""

from pathlib import Path

import pytest
from helpers.refusing import NETWORK, run_refusing
from helpers.workspaces import write_inputs

ROOT = Path(__file__).resolve().parents[2]

STAGES = """
import nbformat
from pathlib import Path
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from helpers.workspaces import RECIPE, corpus_of
from saelib.config import CollectConfig, CorpusConfig, EvalConfig
from saelib.run.report import build_report
from saelib.run.workspace import Workspace

home, model = Path(sys.argv[1]), sys.argv[2]
small = CorpusConfig(source="embedded", n_docs=30, ctx_len=32, contexts_per_page=1)
corpus = small if model == "embedded" else corpus_of(home)
workspace = Workspace("tiny", "cpu", EvalConfig(ce_tokens=64))
workspace.collect(model, corpus, [1], CollectConfig())
recipe = RECIPE | {"tokens": 512}
assert len(workspace.train([workspace.spec("plain", 1, lam=0.5, **recipe)], "02_train_sae")) == 1
cells = [new_markdown_cell("# Claim: $x^2$"), new_code_cell("1 + 1", execution_count=1)]
done = home / "data" / "tiny" / "notebooks" / "02_train_sae.ipynb"
done.parent.mkdir()
nbformat.write(new_notebook(cells=cells), done)
assert build_report("tiny").is_file()
"""


def run_stages(home, model):
    run_refusing(NETWORK, STAGES, home, model, SAELIB_HOME=str(home), HF_HUB_OFFLINE=None)
    assert (home / "data" / "tiny" / "results.csv").is_file()


def test_collecting_training_and_reporting_ask_nothing_of_the_network(home):
    write_inputs(home)
    run_stages(home, str(home / "model"))


@pytest.mark.slow
def test_nor_do_they_with_the_embedded_model_and_text(home):
    (home / "data").mkdir()
    (home / "data" / "assets").symlink_to(ROOT / "data" / "assets")
    run_stages(home, "embedded")


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.getaddrinfo('example.invalid', 80)",
        "socket.gethostbyname('example.invalid')",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 80))",
    ],
)
def test_an_attempt_is_seen_also_where_its_error_is_swallowed(attempt):
    script = f"import contextlib, socket\nwith contextlib.suppress(OSError): {attempt}"
    with pytest.raises(AssertionError, match="AssertionError"):
        run_refusing(NETWORK, script)
