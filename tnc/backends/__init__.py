"""Backends: array libraries and the devices that their arrays are on.

All computations use the array API standard. So a backend is only a name, a device, a namespace, and conversions from
and to NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from array_api_compat import array_namespace

from tnc.errors import BackendError, closest
from tnc.registry import backends as registry
from tnc.typing import Array, Namespace

__all__ = ["Backend", "get", "move", "of", "registry"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_HOST = 1  # DLPack's kDLCPU


class Backend(ABC):
    """One array library on one device.

    Parameters
    ----------
    device : str, optional
        Device of the library, for example ``"cuda:1"``. Without it, the default device of the library.

    Raises
    ------
    MissingExtraError
        The library is not installed.
    BackendError
        This machine does not have the device.
    """

    name: ClassVar[str]

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    @property
    @abstractmethod
    def xp(self) -> Namespace:
        """The array API namespace."""

    @abstractmethod
    def from_numpy(self, array: np.ndarray) -> Array:
        """Copy or view a NumPy array on this backend's device."""

    def to_numpy(self, x: Array) -> np.ndarray:
        """Copy or view an array of this backend on the host."""
        return np.from_dlpack(x)

    def holds(self, x: Array) -> bool:
        """Whether `x` is an array of this library on this device."""
        return array_namespace(x) is self.xp

    def plain(self, x: Array) -> Array:
        """`x` detached from autograd. By default `x` itself."""
        return x

    def foreign(self, x: Array) -> str | None:
        """What kind of special array `x` is, such as ``"sparse"``. None for a plain array, and by default."""
        return None

    def memory(self, x: Array) -> Any:
        """A key that is equal for arrays that share their whole memory (tied weights)."""
        return id(x)

    def synchronize(self) -> None:
        """Wait until the device has finished its work. By default there is nothing to wait for."""

    def concurrently(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """The results of `function` in the order of the jobs. Several jobs run at a time if that is faster."""
        return map(function, jobs)

    def __repr__(self) -> str:
        return f"<backend {self.name}{':' + self.device if self.device else ''}>"


class Portable(Backend):
    """Any library of the array API standard that has no plugin. Arrays are converted by DLPack."""

    name = "portable"

    def __init__(self, xp: Namespace) -> None:
        super().__init__()
        self._xp = xp

    @property
    def xp(self) -> Namespace:
        return self._xp

    def from_numpy(self, array: np.ndarray) -> Array:
        return self._xp.asarray(array)


def get(spec: str | Backend) -> Backend:
    """The backend of a text ``"name"`` or ``"name:device"``, such as ``"numpy"``, ``"torch:cuda"`` or ``"cupy"``.

    Raises
    ------
    UnknownNameError
        No backend of this name is installed.
    MissingExtraError, BackendError
        Its library is not installed, or this machine does not have its device.
    """
    if isinstance(spec, Backend):
        return spec
    name, _, device = spec.partition(":")
    backend: Backend = registry[name](device or None)
    return backend


def of(x: Array) -> Backend:
    """The backend of an array.

    Raises
    ------
    BackendError
        It is not an array of a known library.
    """
    try:
        xp = array_namespace(x)
    except TypeError:
        raise BackendError(
            f"{type(x).__name__} is no array of a known library; pass a NumPy, CuPy or PyTorch array"
        ) from None
    library = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    if library not in registry:
        return Portable(xp)
    kind = registry[library]
    backend: Backend = kind() if library == "numpy" else kind(str(x.device))
    return backend


def move(x: Array, target: Backend) -> Array:
    """`x` on the target backend: `x` itself if it is there, else by DLPack between accelerators, else by the host."""
    if target.holds(x):
        return x
    moved = _by_dlpack(x, target)
    return target.from_numpy(of(x).to_numpy(x)) if moved is None else moved


def _by_dlpack(x: Array, target: Backend) -> Array | None:
    """An array of an accelerator on the target; None if DLPack cannot do this."""
    if any(stride < 0 for stride in getattr(x, "strides", None) or ()):  # torch would abort the process
        return None
    try:
        if x.__dlpack_device__()[0] == _HOST:
            return None
        moved = target.xp.from_dlpack(x)
        return moved if target.holds(moved) else None
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # another device, or a dtype that DLPack does not have


def unknown_device(name: str, device: str, there: list[str]) -> BackendError:
    """The error for a device that this machine does not have.

    Parameters
    ----------
    name : str
        Of the backend.
    device : str
        What was asked for.
    there : list of str
        Devices that exist.
    """
    return BackendError(
        f"backend {name!r} has no device {device!r} here.{closest(device, there)} Available: {', '.join(there)}."
    )
