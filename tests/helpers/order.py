"""Which test files begin first.

Several processes take whole files in turn. A long one that begins last leaves the others idle, and
ranks that wait for one another wait longest where every core is busy.
"""

LONGEST = (
    *("test_ranks.py", "test_benchmarks.py", "test_two_processes.py", "test_sweep.py"),
    *("test_plan.py", "test_mediawiki.py", "test_workspace.py", "test_live.py"),
    *("test_contexts.py", "test_collect.py", "test_full_disk.py", "test_execution.py"),
)


def longest_first(items: list) -> None:
    """Put the tests of these files first, in that order; the rest stays as it was."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
