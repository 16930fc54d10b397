"""torch as an array namespace, its own functions where they do as the standard says.

`array_api_compat` promotes types in Python at every call, which a layer's operands never need: 4 microseconds a
product, where a small one takes 2.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as compat
import torch

__all__ = ["xp"]


class _Native:
    reshape = staticmethod(torch.reshape)
    permute_dims = staticmethod(torch.permute)
    matmul = staticmethod(torch.matmul)
    broadcast_to = staticmethod(torch.broadcast_to)

    @staticmethod
    def matrix_transpose(x: torch.Tensor) -> torch.Tensor:
        return x.mT

    def __getattr__(self, name: str) -> Any:
        return getattr(compat, name)


xp: Any = _Native()
"""The namespace for layers."""
