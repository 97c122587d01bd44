"""Trained SAEs to numbers: reconstruction, next-token loss, geometry, codes without an encoder."""
