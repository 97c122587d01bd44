"""Does a function's time grow with its input, or with the square of it?

Seconds say more about a machine than about a function, so a time is compared with another of the
same machine: four times the input takes about 4 times as long, and 16 times where it is quadratic.
"""

import time
from collections.abc import Callable

TIMES = 4  # how much longer the second input is
MOST = 9  # between TIMES and its square
UNSEEN = 0.02  # seconds that a clock and a cold cache may add


def least_seconds(function: Callable[[str], object], text: str) -> float:
    """Processor seconds of the quickest of three calls."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        function(text)
        seconds.append(time.process_time() - start)
    return min(seconds)


def grows_in_proportion(
    function: Callable[[str], object], text_of: Callable[[int], str], n: int
) -> bool:
    """Whether `text_of(4 * n)` takes at most 9 times as long as `text_of(n)`."""
    short = least_seconds(function, text_of(n))
    long = least_seconds(function, text_of(TIMES * n))
    return long <= MOST * short + UNSEEN
