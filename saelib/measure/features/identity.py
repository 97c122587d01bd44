"""Which SAE an index belongs to."""

from __future__ import annotations

import hashlib
import json

from saelib.sae import Autoencoder

SHORT = 12  # digits of a checksum in names and sentences


def sae_checksum(sae: Autoencoder) -> str:
    """sha256 over the SAE's configuration and all its tensors, normaliser included."""
    digest = hashlib.sha256(json.dumps(sae.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()
