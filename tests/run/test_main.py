"""The command line: how settings are read, and what answers at once."""

import subprocess
import sys

import pytest

from saelib.__main__ import main, parse_setting


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
