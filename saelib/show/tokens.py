"""Tokens as text on a page: their pieces, and the colour of an activation."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_hex, to_rgb

SHADE = "#D55E00"


def shade(share: float) -> tuple[str, str]:
    """Background and text colour for an activation as a share of the largest.

    White to deep orange; the text is black or white, whichever contrasts more.
    """
    back = 1 - share * (1 - np.array(to_rgb(SHADE)))
    linear = np.where(back <= 0.04045, back / 12.92, ((back + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return to_hex(back), "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (
        luminance + 0.05
    ) else "#ffffff"
