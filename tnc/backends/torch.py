"""PyTorch: the host, CUDA and whatever device it knows (``torch``, ``torch:cuda``, ``torch:cuda:1``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np

from tnc.backends import Backend, Job, Result, unknown_device
from tnc.errors import MissingExtraError
from tnc.typing import Array, Namespace

__all__ = ["TorchBackend"]

try:
    import array_api_compat.torch as xp
    import torch
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtraError("the backend 'torch' needs PyTorch: pip install 'tncompress[torch]'") from error


_JOBS = 4
"""At most so many at a time: each has a copy of its weight, and more."""


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

    def concurrently(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """On the host a few jobs share the threads: one that has all of them leaves some idle half of the time."""
        threads = torch.get_num_threads()
        workers = min(threads, len(jobs), _JOBS)
        if self.place.type != "cpu" or workers == 1:
            yield from map(function, jobs)
            return
        context = copy_context()  # settings are in force in the threads, too
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        try:
            yield from pool.map(lambda job: context.copy().run(function, job), jobs)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
