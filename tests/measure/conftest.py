"""One tiny model, its store and the reference of a site, shared by the tests of measuring."""

import pytest
from helpers.models import tiny_llama
from helpers.stores import CFG, SITE, write_store

from saelib.measure.reference import site_reference


@pytest.fixture(scope="module")
def lm():
    return tiny_llama()


@pytest.fixture(scope="module")
def store(lm, tmp_path_factory):
    return write_store(lm, tmp_path_factory.mktemp("measure") / "store")


@pytest.fixture(scope="module")
def ref(lm, store):
    return site_reference(lm, store, SITE, CFG)
