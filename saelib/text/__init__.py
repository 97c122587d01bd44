"""Documents to contexts: pages, sources, markup, the embedded assets, packing."""
