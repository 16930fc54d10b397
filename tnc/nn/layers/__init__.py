"""Layers whose weight is a tensor network: torch's own classes with the weight replaced by its cores.

Each is a subclass of torch's layer, so hooks, attributes, padding modes and parents that read ``weight`` keep working.
"""

from __future__ import annotations

from tnc.nn.layers.base import Factorized
from tnc.nn.layers.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tnc.nn.layers.embedding import Embedding, EmbeddingBag
from tnc.nn.layers.linear import Linear
from tnc.nn.layers.registry import factorized_class, layers

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
    "Embedding", "EmbeddingBag", "Factorized", "Linear", "factorized_class", "layers",
]  # fmt: skip
