"""The settings: the backend, and the cache folder.

The backend is chosen, in this order, by the argument of a call, by `use_backend`, by `set_backend`, or by the
environment variable ``TNC_BACKEND``. Without any of these, computations run where the weights are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tnc.backends import Backend, get

__all__ = ["cache_folder", "current_backend", "set_backend", "use_backend"]

_UNSET = object()
_process: Backend | None = None
_context: ContextVar[object] = ContextVar("tnc_backend", default=_UNSET)


def set_backend(spec: str | Backend | None) -> None:
    """Choose the backend of this process, for example ``"torch:cuda"``. None removes the choice.

    Raises
    ------
    UnknownNameError, MissingExtraError, BackendError
        The backend is not installed, its library is missing, or this machine does not have its device.
    """
    global _process
    _process = None if spec is None else get(spec)


@contextmanager
def use_backend(spec: str | Backend | None) -> Iterator[Backend | None]:
    """Choose the backend inside a ``with`` block, for this thread or task. None means where the weights are.

    Raises
    ------
    UnknownNameError, MissingExtraError, BackendError
        As `set_backend`.
    """
    chosen = None if spec is None else get(spec)
    token = _context.set(chosen)
    try:
        yield chosen
    finally:
        _context.reset(token)


def current_backend(spec: str | Backend | None = None) -> Backend | None:
    """The backend in use: `spec`, or that of `use_backend`, of `set_backend` or of ``TNC_BACKEND``, or None."""
    if spec is not None:
        return get(spec)
    chosen = _context.get()
    if chosen is not _UNSET:
        return chosen if isinstance(chosen, Backend) else None
    if _process is not None:
        return _process
    named = os.environ.get("TNC_BACKEND")
    return get(named) if named else None


def cache_folder() -> Path:
    """The folder for measurements and downloads: ``TNC_CACHE``, or ``tnc`` in the platform's cache folder."""
    if chosen := os.environ.get("TNC_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "tnc"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/tnc"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tnc"
