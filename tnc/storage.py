"""Safetensors files with NumPy alone: bfloat16 included, written beside and renamed, never half."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from tnc.errors import CheckpointError

__all__ = ["bfloat16", "read", "write"]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write(
    path: str | Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str], narrow: frozenset[str]
) -> None:
    """Write arrays and header; those named in `narrow` as bfloat16. The old file survives any failure.

    Raises
    ------
    CheckpointError
        The folder is missing or the file cannot be written.
    """
    target = Path(path).resolve()  # a link stays a link
    if not target.parent.is_dir():
        raise CheckpointError(f"cannot save {str(path)!r}: the folder {str(target.parent)!r} does not exist; create it")
    alive = {name: bfloat16(x) if name in narrow else _native(x) for name, x in arrays.items()}
    entries = {}
    for name, data in alive.items():
        dtype = "bfloat16" if name in narrow else data.dtype.name
        if dtype not in ("bfloat16", *_DTYPES.values()):
            raise CheckpointError(f"cannot save {str(path)!r}: {name} has dtype {dtype}, which safetensors cannot hold")
        shape = list(arrays[name].shape)
        entries[name] = TensorSpec(dtype=dtype, shape=shape, data_ptr=data.ctypes.data, data_len=data.nbytes)
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise CheckpointError(f"cannot save {str(path)!r}: {error}") from error
    try:
        serialize_file(entries, beside, dict(header))
        _flush(beside)
        os.chmod(beside, _mode(target))
        os.replace(beside, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save {str(path)!r}: {error}; a file that was there is unchanged") from error
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def _native(x: np.ndarray) -> np.ndarray:
    """In row-major order and in the byte order of the machine and the file, which are little-endian."""
    return np.require(x, x.dtype.newbyteorder("="), ["C"])


def _flush(path: str) -> None:
    """Wait until the bytes are on the disk: a rename must not overtake them."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _mode(path: Path) -> int:
    """Permissions of the file replaced, or what the umask gives a new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str], frozenset[str]]:
    """Arrays, header, and the names that were bfloat16 (given as float32).

    Raises
    ------
    CheckpointError
        There is no such file, or it is truncated or not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"cannot load {str(path)!r}: there is no such file")
    try:
        with safe_open(path, framework="np") as file:  # checks the layout and every offset against the file's size
            header = dict(file.metadata() or {})
        with open(path, "rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            layout = json.loads(raw.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {str(path)!r}: truncated or not a safetensors file ({error})") from error
    layout.pop("__metadata__", None)
    arrays, narrow = {}, set()
    for name, entry in layout.items():
        start, end = entry["data_offsets"]
        if entry["dtype"] not in (*_DTYPES, "BF16"):
            raise CheckpointError(
                f"cannot load {str(path)!r}: {name} has dtype {entry['dtype']}, which is not supported"
            )
        dtype = np.dtype(_DTYPES.get(entry["dtype"], "uint16"))
        flat = np.fromfile(path, dtype, (end - start) // dtype.itemsize, offset=8 + length + start)
        if entry["dtype"] == "BF16":
            narrow.add(name)
            flat = widen(flat)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, header, frozenset(narrow)
