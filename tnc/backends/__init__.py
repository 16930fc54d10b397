"""A backend is a place, not a dialect: where arrays live and how they get there.

The dialect everywhere is the array API standard, so a backend is a name, a device, a namespace and the
way to and from NumPy.
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
        Device of the library, ``"cuda:1"`` for instance; the library's default when omitted.

    Raises
    ------
    MissingExtraError
        The library is not installed.
    BackendError
        The device does not exist here.
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
        """Whether `x` already lives in this place."""
        return array_namespace(x) is self.xp

    def plain(self, x: Array) -> Array:
        """`x` without a record of gradients; itself by default."""
        return x

    def memory(self, x: Array) -> Any:
        """A key equal for arrays that share their whole memory (tied weights)."""
        return id(x)

    def synchronize(self) -> None:
        """Wait for the device; nothing to wait for by default."""

    def concurrently(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """The results of `function` in the order of the jobs; several at a time where that is faster."""
        return map(function, jobs)

    def __repr__(self) -> str:
        return f"<backend {self.name}{':' + self.device if self.device else ''}>"


class Portable(Backend):
    """Any library of the array API standard that no plugin is registered for; moves through DLPack."""

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
    """The backend written ``"name"`` or ``"name:device"``: ``"numpy"``, ``"torch:cuda"``, ``"cupy"``.

    Raises
    ------
    UnknownNameError
        No backend of that name is installed.
    MissingExtraError, BackendError
        Its library or its device is not here.
    """
    if isinstance(spec, Backend):
        return spec
    name, _, device = spec.partition(":")
    return registry[name](device or None)


def of(x: Array) -> Backend:
    """The backend an array lives on."""
    try:
        xp = array_namespace(x)
    except TypeError:
        raise BackendError(
            f"{type(x).__name__} is no array of a known library; pass a NumPy, CuPy or PyTorch array"
        ) from None
    library = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    if library not in registry:
        return Portable(xp)
    backend = registry[library]
    return backend(str(x.device)) if library != "numpy" else backend()


def move(x: Array, target: Backend) -> Array:
    """`x` on the target backend: as it is, between accelerators by DLPack, else through the host."""
    if target.holds(x):
        return x
    backward = any(stride < 0 for stride in getattr(x, "strides", None) or ())  # torch would abort the process
    try:
        if x.__dlpack_device__()[0] != _HOST and not backward:
            moved = target.xp.from_dlpack(x)
            if target.holds(moved):
                return moved
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError, NotImplementedError):
        pass  # another device, or a dtype DLPack does not carry
    return target.from_numpy(of(x).to_numpy(x))


def unknown_device(name: str, device: str, there: list[str]) -> BackendError:
    """The error for a device that is not here."""
    return BackendError(
        f"backend {name!r} has no device {device!r} here.{closest(device, there)} Available: {', '.join(there)}."
    )
