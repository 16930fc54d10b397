"""PyTorch: the host, CUDA and whatever device it knows (``torch``, ``torch:cuda``, ``torch:cuda:1``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tnc.backends import Backend, unknown_device
from tnc.errors import MissingExtraError
from tnc.typing import Array, Namespace

__all__ = ["TorchBackend"]

try:
    import array_api_compat.torch as xp
    import torch
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtraError("the backend 'torch' needs PyTorch: pip install 'tncompress[torch]'") from error


class TorchBackend(Backend):
    """Tensors of PyTorch on one of its devices."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.place = torch.device(device or "cpu")
            torch.empty(0, device=self.place)
        except (AssertionError, ImportError, RuntimeError):  # a name torch knows need not be a device that is here
            there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count())), "meta"]
            there += ["mps"] if torch.backends.mps.is_available() else []
            raise unknown_device(self.name, str(device), there) from None
        super().__init__(device)

    @property
    def xp(self) -> Namespace:
        return xp

    def holds(self, x: Array) -> bool:
        return isinstance(x, torch.Tensor) and (
            x.device == self.place or (x.device.type == self.place.type and self.place.index is None)
        )

    def from_numpy(self, array: np.ndarray) -> Array:
        native = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        return torch.from_numpy(native).to(self.place)

    def to_numpy(self, x: Array) -> np.ndarray:
        x = x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16,) else x).numpy()

    def plain(self, x: Array) -> Array:
        return x.detach()

    def memory(self, x: Array) -> Any:
        if x.device.type == "meta":
            return id(x)
        return x.data_ptr(), tuple(x.shape), x.stride(), x.dtype

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
