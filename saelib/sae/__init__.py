"""Sparse autoencoders: architectures, objectives, steps and training.

Imports torch, transformers, safetensors and numpy alone.
"""

from saelib.sae.architectures import ARCHITECTURES, build_sae, load_sae
from saelib.sae.base import Autoencoder
from saelib.sae.gated import GatedSAE
from saelib.sae.relu import ReluSAE as SAE

__all__ = ["ARCHITECTURES", "SAE", "Autoencoder", "GatedSAE", "build_sae", "load_sae"]
