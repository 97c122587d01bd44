"""For `pytest --nbval` (see the Makefile): warnings and progress bars on stderr are not part of a notebook's claim."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
