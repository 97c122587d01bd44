"""Shapes of published models."""

from saelib.run.costs import Shape

SMOLLM2 = Shape(576, 30, 9, 3, 1536, 49152, True)
LLAMA2 = Shape(4096, 32, 32, 32, 11008, 32000)
