"""PyTorch: the CPU, CUDA and all other devices of PyTorch (``torch``, ``torch:cuda``, ``torch:cuda:1``)."""

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
"""Largest number of jobs at a time. Each needs memory for more than one copy of its weight."""


class TorchBackend(Backend):
    """Tensors of PyTorch on one of its devices."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.place = torch.device(device or "cpu")
            torch.empty(0, device=self.place)
        except (AssertionError, ImportError, RuntimeError):  # torch knows names of devices that do not exist
            there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count())), "meta"]
            there += ["mps"] if torch.backends.mps.is_available() else []
            raise unknown_device(self.name, str(device), there) from None
        super().__init__(device)

    @property
    def xp(self) -> Namespace:
        return xp

    def holds(self, x: Array) -> bool:
        if not isinstance(x, torch.Tensor):
            return False
        any_index = self.place.index is None and x.device.type == self.place.type
        return x.device == self.place or any_index

    def from_numpy(self, array: np.ndarray) -> Array:
        native = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        return torch.from_numpy(native).to(self.place)

    def to_numpy(self, x: Array) -> np.ndarray:
        x = x.detach().cpu()
        values: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        return values

    def plain(self, x: Array) -> Array:
        return x.detach()

    def foreign(self, x: Array) -> str | None:
        if x.layout != torch.strided:
            return f"sparse ({str(x.layout).removeprefix('torch.')})"
        if x.is_quantized:
            return f"quantized ({str(x.dtype).removeprefix('torch.')})"
        if hasattr(x, "__tensor_flatten__"):
            return f"a {type(x).__name__}"
        if x.is_floating_point() and x.element_size() < 2:
            return f"of dtype {str(x.dtype).removeprefix('torch.')}"
        return None

    def memory(self, x: Array) -> Any:
        if x.device.type == "meta" or self.foreign(x) is not None:
            return id(x)
        return x.data_ptr(), tuple(x.shape), x.stride(), x.dtype

    def concurrently(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """On the CPU, a few jobs share the threads: one job alone would leave some threads idle half of the time."""
        threads = torch.get_num_threads()
        workers = min(threads, len(jobs), _JOBS)
        if self.place.type != "cpu" or workers == 1:
            yield from map(function, jobs)
            return
        context = copy_context()  # the threads need the settings of this one
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        try:
            yield from pool.map(lambda job: context.copy().run(function, job), jobs)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
