"""Markup removed in a process of its own, whose processor time and memory a page cannot exceed.

The parser takes time quadratic in what a page leaves open (32 kB of unclosed templates: 33 s), in C
code that nothing inside the process can stop. The kernel ends the process instead: bounds are in
processor time, so that a busy machine drops no page that an idle one reads.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from typing import Any

from saelib.text.child import environment, python

SECONDS = 3.0  # of processor time for any page
# and for each character: ten times what the slowest of the embedded articles takes
SECONDS_A_CHARACTER = 2e-5
MEMORY = 2 << 30  # bytes of address space of the process
COMMAND = "from saelib.text.apart import serve; serve()"


class MarkupError(ValueError):
    """A page's markup cannot be removed within the bounds; the message says which was exceeded."""


def seconds_for(wikitext: str) -> float:
    """The processor time that a page may take."""
    return SECONDS + SECONDS_A_CHARACTER * len(wikitext)


class Cleaner:
    """`clean_markup` in another process, started with the first page; a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cleaner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __call__(self, wikitext: str) -> str:
        """The page's text; `MarkupError` where it takes more time or memory than a page may."""
        process = self._process = self._process or _started()
        answer = _asked(process, wikitext)
        if answer is None:
            process.communicate()
            self._process = None
            raise MarkupError(_cause(process.returncode, wikitext))
        if "fault" in answer:
            raise MarkupError(answer["fault"])
        return answer["text"]


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python("-c", COMMAND),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )


def _asked(process: subprocess.Popen[bytes], wikitext: str) -> dict[str, str] | None:
    """What the process answers; None where it ended instead."""
    try:
        question = json.dumps([seconds_for(wikitext), wikitext])
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def _cause(code: int, wikitext: str) -> str:
    if code == -signal.SIGVTALRM:
        bound = f"{seconds_for(wikitext):.1f} s of processor time"
        return f"its markup takes more than {bound}, the most that {len(wikitext):,} characters may"
    return f"its markup ended the process that removes it (status {code})"


# ---- in the other process


def serve() -> None:
    """Answer each page on standard input, JSON of its seconds and text a line, with an object.

    SIGVTALRM, not handled, ends the process when a page has had its processor time.
    """
    from saelib.text.wikitext import clean_markup

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        seconds, wikitext = json.loads(line)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        answer: dict[str, Any] = {}
        try:
            answer["text"] = clean_markup(wikitext)
        except MemoryError:
            answer["fault"] = f"its markup takes more than {MEMORY >> 20:,} MiB of memory"
        except Exception as error:  # whatever the parser raises concerns this page alone
            answer["fault"] = f"its markup cannot be read ({type(error).__name__}: {error})"
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
