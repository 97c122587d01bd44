"""The command line: how settings are read, and what answers at once."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from saelib.__main__ import assets_of, main, parse_setting
from saelib.config import ConfigError
from saelib.run.plan import model_of


def test_a_setting_reads_python_literals_and_words():
    texts = ["lr=3e-4", "sites=[2, 'middle']", "clip=true", "model=embedded", "note=a=b"]
    values = [3e-4, [2, "middle"], True, "embedded", "a=b"]
    assert [parse_setting(t)[1] for t in texts] == values


@pytest.mark.parametrize(
    "text",
    [
        *("lr=[", "lr={a: b", "lr", "lr={[]: 1}", "lr={a: 1, a: 2}", "lr=[&a [1], *a]"),
        *("lr=!!bool x", "lr=!!timestamp x", "lr=" + "[" * 50_000, "lr=" + "- " * 50_000 + "1"),
    ],
    ids=lambda text: text[:20],
)
def test_a_setting_that_cannot_be_read_is_a_usage_error_that_quotes_it(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--profile", "smoke", "--set", text])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f"argument --set: {text[:200]!r}"[:200] in message
    assert len(message) < 1000


REPORT_LOADED = """
import sys
from saelib.__main__ import main
try:
    main({arguments})
except SystemExit:
    pass
print("loaded:", sorted({{"torch", "pandas", "transformers", "papermill"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "--profile", "smok"],
        ["run", "--profile", "smoke", "--set", "lrr=3"],
        ["plan", "--profile", "smoke", "--set", "lr='x'"],
        ["plan", "--profile", "smoke", "--set", "lr=-1"],
        ["train", "--profile", "smoke", "--set", "n_latent=3"],
    ],
    ids=" ".join,
)
def test_help_and_a_refusal_load_neither_torch_nor_pandas(arguments):
    code = REPORT_LOADED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stdout + done.stderr


def test_control_sequences_in_a_message_do_not_reach_the_terminal():
    code = (
        "import logging; from saelib.__main__ import set_up_logging; set_up_logging()\n"
        "logging.getLogger('saelib.run.fit').info('%s: \\x1b[2J\\x9b31mred', 'a\\x1b]0;b\\x07')\n"
        "logging.getLogger('papermill').info('100%% \\x1b[31mred')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("a: red\n100%% red\n", "")


def jobs_with(*values):
    return [SimpleNamespace(values=given) for given in values]


def test_a_run_fetches_what_its_notebooks_ask_for_by_name_and_nothing_else():
    assert assets_of(jobs_with({"model": "tinyllama", "source": "embedded"}, {})) == (
        {"tinyllama"},
        True,
    )
    assert assets_of(jobs_with({"model": "embedded", "source": "enwik8"})) == ({"embedded"}, False)
    assert assets_of(jobs_with({"model": "./folder", "source": "jsonl"})) == (set(), False)


def test_a_plan_fetches_no_model_and_says_what_does(home):
    with pytest.raises(
        ConfigError, match=r"model = 'tinyllama': not here yet, .*`python -m saelib "
    ):
        model_of("tinyllama")
    assert not (home / "data").exists()


def test_a_model_without_a_name_is_no_asset(home, caplog):
    assert main(["assets", "gpt2"]) == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "error: assets gpt2: expected one of embedded, tinyllama"
    assert not (home / "data").exists()
