"""The setting that chooses the backend: a call's argument, a context, the process, the environment.

Unset means the place where the weights are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tnc.backends import Backend, get

__all__ = ["current_backend", "set_backend", "use_backend"]

_UNSET = object()
_process: Backend | None = None
_context: ContextVar[object] = ContextVar("tnc_backend", default=_UNSET)


def set_backend(spec: str | Backend | None) -> None:
    """Choose the backend of this process, ``"torch:cuda"`` for instance; None unsets it.

    Raises
    ------
    UnknownNameError, MissingExtraError, BackendError
        The backend is not installed, its library is missing, or its device is not here.
    """
    global _process
    _process = None if spec is None else get(spec)


@contextmanager
def use_backend(spec: str | Backend | None) -> Iterator[Backend | None]:
    """Choose the backend inside a ``with`` block (of this thread or task); None means where the weights are."""
    chosen = None if spec is None else get(spec)
    token = _context.set(chosen)
    try:
        yield chosen
    finally:
        _context.reset(token)


def current_backend(spec: str | Backend | None = None) -> Backend | None:
    """The backend in force: `spec`, else the context's, else the process's, else ``TNC_BACKEND``'s, else None."""
    if spec is not None:
        return get(spec)
    chosen = _context.get()
    if chosen is not _UNSET:
        return chosen if isinstance(chosen, Backend) else None
    if _process is not None:
        return _process
    named = os.environ.get("TNC_BACKEND")
    return get(named) if named else None
