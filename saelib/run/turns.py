"""One process at a time at a run: others that ask for it wait, and find it finished.

    data/<profile>/.locks/<run_id>     held while a run is trained or measured
    data/<profile>/.locks/<name>       of a notebook, the table of results, the report

The files stay, and are empty while nobody holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from saelib.files import LockedError, locked

LOCKS = ".locks"

log = logging.getLogger("saelib")


@contextmanager
def turn(folder: Path, name: str, what: str = "") -> Iterator[None]:
    """Hold the lock `name` of a profile's folder; where another process does, say so and wait.

    what: what it is a lock of, in the message; `name` where none is given.
    """

    def say(holder: str) -> None:
        log.warning("%s is at work on %s: waiting for it", holder, what or name)

    with locked(folder / LOCKS / name, on_wait=say):
        yield


@contextmanager
def turns(folder: Path, runs: Sequence[str], wait: bool) -> Iterator[bool]:
    """Hold the locks of all `runs`, in the order of their names; yields whether they are held.

    Without `wait` nothing is held where another process has one of them. Two processes that wait
    cannot wait for each other, since both take the locks in one order.
    """
    with ExitStack() as stack:
        try:
            for run in sorted(runs):
                if wait:
                    stack.enter_context(turn(folder, run, f"run {run}"))
                else:
                    stack.enter_context(locked(folder / LOCKS / run, wait=False))
        except LockedError:
            stack.close()
            yield False
            return
        yield True
