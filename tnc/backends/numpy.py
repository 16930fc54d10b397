"""NumPy: arrays in the memory of the host."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from tnc.backends import Backend, unknown_device
from tnc.typing import Array, Namespace

__all__ = ["NumpyBackend"]


class NumpyBackend(Backend):
    """Arrays of NumPy, on the CPU."""

    name = "numpy"

    def __init__(self, device: str | None = None) -> None:
        if device not in (None, "cpu"):
            raise unknown_device(self.name, str(device), ["cpu"])
        super().__init__(None)

    @property
    def xp(self) -> Namespace:
        return xp

    def from_numpy(self, array: np.ndarray) -> Array:
        return array

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def memory(self, x: Array) -> Any:
        return x.__array_interface__["data"][0], x.shape, x.strides, x.dtype.str
