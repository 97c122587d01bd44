"""Tables for reading: printed or shown in a notebook, their texts stand whole."""

from __future__ import annotations

import pandas as pd

# pandas cuts a text after 50 characters, and breaks or drops columns at the terminal's width
WHOLE = ("display.max_colwidth", None, "display.max_columns", None)
UNBROKEN = ("display.expand_frame_repr", False)


class Listing(pd.DataFrame):
    """A table of texts that prints each in full; in all else a `DataFrame`."""

    @property
    def _constructor(self) -> type[Listing]:
        return Listing

    def __repr__(self) -> str:
        with pd.option_context(*WHOLE, *UNBROKEN):
            return super().__repr__()

    def _repr_html_(self) -> str | None:
        with pd.option_context(*WHOLE):
            return super()._repr_html_()
