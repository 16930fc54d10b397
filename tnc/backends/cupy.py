"""CuPy: arrays on CUDA devices with the interface of NumPy (``cupy``, ``cupy:1``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tnc.backends import Backend, unknown_device
from tnc.errors import BackendError, MissingExtraError
from tnc.typing import Array, Namespace

__all__ = ["CupyBackend"]

try:
    import array_api_compat.cupy as xp
    import cupy
except ImportError as error:
    raise MissingExtraError("the backend 'cupy' needs CuPy: pip install 'tncompress[cupy]'") from error


class CupyBackend(Backend):
    """Arrays of CuPy on one CUDA device."""

    name = "cupy"

    def __init__(self, device: str | None = None) -> None:
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(f"backend 'cupy' finds no CUDA device: {error}") from None
        number = "".join(filter(str.isdigit, device or "0"))  # of "1", "cuda:1" or "<CUDA Device 1>"
        if not number or int(number) >= count:
            raise unknown_device(self.name, str(device), [str(k) for k in range(count)])
        super().__init__(number)
        self.place = cupy.cuda.Device(int(number))

    @property
    def xp(self) -> Namespace:
        return xp

    def holds(self, x: Array) -> bool:
        return isinstance(x, cupy.ndarray) and x.device == self.place

    def from_numpy(self, array: np.ndarray) -> Array:
        with self.place:
            return cupy.asarray(array)

    def to_numpy(self, x: Array) -> np.ndarray:
        host: np.ndarray = cupy.asnumpy(x)
        return host

    def memory(self, x: Array) -> Any:
        return x.data.ptr, x.shape, x.strides, x.dtype.str

    def synchronize(self) -> None:
        with self.place:
            cupy.cuda.get_current_stream().synchronize()
