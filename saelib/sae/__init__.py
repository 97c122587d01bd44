"""Sparse autoencoders: architectures, losses, steps, training; torch, numpy, safetensors, transformers alone."""
