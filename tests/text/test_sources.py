"""Every source that a configuration may name has a record that says what it reads."""

from typing import get_args, get_type_hints

import pytest

from saelib.config import CorpusConfig
from saelib.text.sources import SOURCES


def test_the_configuration_names_these_sources_and_no_others():
    assert set(get_args(get_type_hints(CorpusConfig)["source"])) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_says_what_its_path_is_and_under_which_licence_its_text_stands(name):
    assert SOURCES[name].path
    assert SOURCES[name].licence


def test_only_a_path_that_does_not_exist_is_looked_for_on_the_hub(tmp_path):
    local = CorpusConfig("dataset", f"{tmp_path}:config:train")
    remote = CorpusConfig("dataset", "owner/name:config:train")
    assert not SOURCES["dataset"].on_hub(local)
    assert SOURCES["dataset"].on_hub(remote)
    assert not SOURCES["jsonl"].on_hub(CorpusConfig("jsonl", "owner/name"))
