"""For `pytest --nbval` (see the Makefile): stderr is not part of a notebook's claim.

Warnings and progress bars go there.
"""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
