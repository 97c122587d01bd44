"""Trained SAEs to numbers: reconstruction, next-token loss, geometry of a site, codes without an encoder."""
