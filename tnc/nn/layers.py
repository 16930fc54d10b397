"""Layers whose weight is a tensor network: torch's own classes with the weight replaced by its cores.

Each is a subclass of torch's layer, so hooks, attributes, padding modes and parents that read ``weight`` keep working.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from tnc.nn.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tnc.nn.embedding import Embedding, EmbeddingBag
from tnc.nn.factorized import Factorized
from tnc.nn.linear import Linear

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
    "Embedding", "EmbeddingBag", "Factorized", "Linear", "factorized_class",
]  # fmt: skip

_CLASSES = (Linear, Embedding, EmbeddingBag, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)


def factorized_class(module: nn.Module) -> type[Factorized] | None:
    """The class here that can stand in for `module`: one whose torch layer runs the same forward."""
    kind = type(module)
    if parametrize.is_parametrized(module):  # its class computes parameters, and would be replaced
        return None
    for made in _CLASSES:
        verbs = [verb for verb in ("forward", "_conv_forward") if hasattr(made.base, verb)]
        if issubclass(kind, made.base) and all(getattr(kind, v) is getattr(made.base, v) for v in verbs):
            return made
    return None
