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
    broadcast_to = staticmethod(torch.broadcast_to)

    @staticmethod
    def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """As torch's, which expands and views for six operations where these are one."""
        if (axes := a.dim()) == b.dim() == 2:
            return torch.mm(a, b)
        return torch.bmm(a, b) if axes == b.dim() == 3 and a.shape[0] == b.shape[0] else torch.matmul(a, b)

    @staticmethod
    def matrix_transpose(x: torch.Tensor) -> torch.Tensor:
        return x.mT

    def __getattr__(self, name: str) -> Any:
        return getattr(compat, name)


xp: Any = _Native()
"""The namespace for layers."""
