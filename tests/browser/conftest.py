"""A profile of a few small SAEs, and what the console of a page called an error."""

import pytest
from helpers.workspaces import RECIPE, trained_profile


def compared_specs(ws):
    """Two λ and two sites: each SAE has a relative at its site or at the other."""
    cells = [(2, 0.3), (2, 1.2), (3, 0.3)]
    return [ws.spec("plain", site, lam=lam, **RECIPE) for site, lam in cells]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    trained_profile(folder, compared_specs)
    return folder


@pytest.fixture(scope="module")
def errors():
    return []
