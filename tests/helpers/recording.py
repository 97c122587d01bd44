"""What the tests of `tools/record.py` share: a README with places for findings, and a finding."""

from pathlib import Path

import numpy as np

from saelib.study import finding
from saelib.study.estimate import Estimate

OTHER = "<!-- summary: full -->\nof another profile\n<!-- /summary: full -->\n"
README = f"# Title\n\n{OTHER}<!-- summary: smoke -->\nold\n<!-- /summary: smoke -->\n\nRest.\n"
FIGURE = finding.figure_path("smoke", "02_a")


def estimate(low, high):
    middle = (low + high) / 2
    return Estimate(np.r_[middle, np.full(100, low), middle, np.full(100, high)])


def one_finding(name="F4", **fields):
    values = {
        "claim": "FVU falls | L0 rises.",
        "rule": "Supported below 1.",
        "verdict": "supported",
        "estimates": {
            "site 2, power of λ": estimate(0.25, 0.75),
            "site 9, power of λ": estimate(1, 1),
        },
        "sentence": "It falls.",
        "section": "How we know",
        "figure": FIGURE,
    }
    return finding.Finding(name=name, **values | fields)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
