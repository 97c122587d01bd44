"""The browser of an SAE's features: in the notebook, and as a page that needs no kernel."""

from saelib.show.explore.panel import (
    contexts_html,
    explore,
    index_latents,
    moderate_latents,
    top_contexts,
)

__all__ = [
    "contexts_html",
    "explore",
    "index_latents",
    "moderate_latents",
    "top_contexts",
]
