"""Reading and writing bytes: of a path, a device, a pipe, or a file object that is open already.

A regular file is written under another name and then renamed. So the old file stays as it is if anything fails. A
device, a pipe or a file object cannot be replaced: the bytes are written to it directly.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tnc.errors import CheckpointError

__all__ = ["File", "Source", "label", "reading", "writing"]

File: TypeAlias = Any
"""A path (str or `os.PathLike`), or a binary file object with ``read`` (to load) or ``write`` (to save)."""

_PIECE = 1 << 24
"""Bytes read from a stream at a time. A stream must deliver them before more memory is allocated."""


def label(file: File) -> str:
    """The name of a file in messages."""
    if hasattr(file, "read") or hasattr(file, "write"):
        return repr(str(getattr(file, "name", "") or f"<{type(file).__name__}>"))
    return repr(str(file))


def _check_binary(file: Any, verb: str, mode: str) -> None:
    if isinstance(file, io.TextIOBase):
        raise CheckpointError(f"cannot {verb} {label(file)}: it is open as text; open it in binary mode, {mode!r}")


# -------------------------------------------------------------------- reading


class Source:
    """Bytes that are read once, from the first to the last.

    Attributes
    ----------
    left : int or None
        Number of bytes that are left to read. None for a stream: its length is not known before it ends.
    """

    def __init__(self, file: Any, left: int | None) -> None:
        self.file, self.left = file, left

    def take(self, size: int) -> np.ndarray:
        """The next bytes, as a new writable array.

        Raises
        ------
        EOFError
            There are fewer bytes. No memory is allocated for bytes that are not there.
        """
        if self.left is None:
            return np.frombuffer(self._gather(size), np.uint8)
        if size > self.left:
            raise EOFError(f"{size:,} bytes are announced, {self.left:,} are there")
        self.left -= size
        data, done = np.empty(size, np.uint8), 0
        while done < size:
            count = self.file.readinto(data[done:].data)
            if not count:
                raise EOFError("the file was shortened while it was read")
            done += count
        return data

    def _gather(self, size: int) -> bytearray:
        """The next bytes of a stream."""
        data = bytearray()
        while len(data) < size:
            piece = self.file.read(min(_PIECE, size - len(data)))
            if not piece:
                raise EOFError(f"{size:,} bytes are announced, {len(data):,} came")
            data += piece
        return data

    def ended(self) -> bool:
        """Whether nothing is left."""
        return not self.file.read(1) if self.left is None else not self.left


@contextmanager
def reading(file: File) -> Iterator[Source]:
    """Open a path, or read a file object from its current position.

    Raises
    ------
    CheckpointError
        There is no such file, or it cannot be read.
    """
    if hasattr(file, "read"):
        _check_binary(file, "load", "rb")
        yield Source(file, None)
        return
    try:
        path = Path(file)
        if path.is_dir() or not path.exists():
            raise CheckpointError(f"cannot load {label(file)}: there is no such file")
        opened = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the block below
    except (OSError, UnicodeEncodeError) as error:
        raise CheckpointError(f"cannot load {label(file)}: {error}") from error
    with opened:
        status = os.fstat(opened.fileno())
        try:
            yield Source(opened, status.st_size if stat.S_ISREG(status.st_mode) else None)
        except OSError as error:
            raise CheckpointError(f"cannot load {label(file)}: {error}") from error


# -------------------------------------------------------------------- writing


@contextmanager
def writing(file: File) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes bytes. A regular file gets its name only when all bytes are written.

    Raises
    ------
    CheckpointError
        The folder is missing, the file is read-only or a folder, or the disk is full.
    """
    if hasattr(file, "write"):
        _check_binary(file, "save", "wb")
        with _reported(file, "what was written so far is not a complete file"):
            yield _writer(file)
    elif _is_stream(file):
        with _reported(file, "what was written so far is not a complete file"), open(file, "wb", buffering=0) as opened:
            yield _writer(opened)
    else:
        with _reported(file, "a file that was there is unchanged"), _beside(_target(file)) as opened:
            yield _writer(opened)


@contextmanager
def _reported(file: File, state: str) -> Iterator[None]:
    """Turn errors of the operating system into a `CheckpointError`, which says in what state the file is left."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot save {label(file)}: {error}; {state}") from error


def _is_stream(path: File) -> bool:
    """Whether the path is a device or a pipe. A block device is refused: writing would destroy its file system."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISBLK(mode):
        raise CheckpointError(f"cannot save {label(path)}: it is a disk; name a file on it")
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _target(file: File) -> Path:
    """The file to replace. For a link it is the file that the link points to, so that the link stays."""
    try:
        path = Path(file).resolve()
    except (RuntimeError, ValueError) as error:  # links that form a cycle, or a NUL character
        raise CheckpointError(f"cannot save {label(file)}: {error}") from error
    if not path.parent.is_dir():
        folder = str(path.parent)
        raise CheckpointError(f"cannot save {label(file)}: the folder {folder!r} does not exist; create it")
    if path.is_dir():
        raise CheckpointError(f"cannot save {label(file)}: it is a folder; name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise CheckpointError(f"cannot save {label(file)}: it is read-only; make it writable or take another name")
    return path


@contextmanager
def _beside(target: Path) -> Iterator[Any]:
    """A new file in the same folder, which replaces the target if no error occurs.

    Its own name is short, because the target's may be as long as the file system allows.
    """
    handle, beside = tempfile.mkstemp(prefix=".tnc-", suffix=".part", dir=target.parent)
    try:
        with open(handle, "wb", buffering=0) as opened:
            yield opened
            _flush(handle)
        os.chmod(beside, _mode(target))
        os.replace(beside, target)
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def _flush(handle: int) -> None:
    """Wait until the bytes are on the disk. The file must not be renamed before that."""
    os.fsync(handle)


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or those that the umask gives to a new file."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _writer(file: Any) -> Callable[[Any], None]:
    """A function that writes all of its bytes to a file."""

    def write(data: Any) -> None:
        left = memoryview(data)
        while left.nbytes:
            count = file.write(left)
            left = left[left.nbytes if count is None else count :]  # a raw file may write a part only

    return write
