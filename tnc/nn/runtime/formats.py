"""Memory formats of weights by their names in torch. The format objects themselves cannot be pickled."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CONTIGUOUS", "in_format", "memory_format"]

CONTIGUOUS = "contiguous_format"


def memory_format(weight: Tensor) -> str:
    """The name of the memory format of a dense weight or a feature map."""
    name = {4: "channels_last", 5: "channels_last_3d"}.get(weight.dim(), CONTIGUOUS)
    plain = weight.is_contiguous() or not weight.is_contiguous(memory_format=getattr(torch, name))
    return CONTIGUOUS if plain else name


def in_format(tensor: Tensor, name: str) -> Tensor:
    """The tensor in the memory format with this name."""
    return tensor.contiguous(memory_format=getattr(torch, name))
