"""Safetensors files with NumPy alone. They hold bfloat16, and a digest of every entry; equal contents give equal bytes.

A file has three parts: eight bytes with the length of its layout, the layout as JSON, and the tensors one after
another. The metadata of the layout hold the caller's text and digests (BLAKE2b, 128 bits). There is one digest of every
tensor with its name, dtype and shape, and one of the metadata with all these digests. Digests reveal damage. They are
not a signature: whoever writes a file can write its digests, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from math import prod
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np

from tnc import claims, files
from tnc.errors import CheckpointError
from tnc.typing import Shape

__all__ = ["Contents", "Entry", "bfloat16", "described", "entry", "opened", "read", "widen", "write"]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_CODES = {name: code for code, name in _DTYPES.items()} | {"bfloat16": "BF16"}
"""Codes of safetensors for dtypes, by their names."""

_METADATA = "__metadata__"
_DIGESTS = "tnc.digests"
_ALGORITHM = "blake2b-128"

MOST_AXES = 64
"""Largest number of axes of an array: the limit of NumPy 2."""

_LONGEST = 100_000_000
"""Largest number of bytes of a layout: the limit of the safetensors library."""

_MANY = 1 << 22
"""From this number of bytes on, several threads compute the digests."""


class Entry(NamedTuple):
    """One tensor of a layout: its dtype, by the code of safetensors, and its shape."""

    dtype: str
    shape: Shape

    @property
    def size(self) -> int:
        """Number of bytes."""
        return prod(self.shape) * np.dtype(_DTYPES.get(self.dtype, "uint16")).itemsize


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values, rounded to the nearest bfloat16, ties to even.

    Values of bfloat16 keep their bit pattern, NaN included. Any other NaN becomes the default one.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = np.where(bits & 0xFFFF, 0x7FC0, bits >> 16)
    return np.where(np.isnan(values), nan, rounded).astype(np.uint16)


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns. They are exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# -------------------------------------------------------------------- writing


def described(arrays: Mapping[str, np.ndarray], narrow: frozenset[str]) -> dict[str, Entry]:
    """Entries of the layout for these arrays, those named in `narrow` as bfloat16.

    Raises
    ------
    CheckpointError
        Safetensors cannot hold a dtype or a name.
    """
    entries = {}
    for name, x in arrays.items():
        dtype = "bfloat16" if name in narrow else x.dtype.name
        if claims.text(name, "a name") == _METADATA:
            raise CheckpointError(f"no entry can be called {_METADATA!r}: safetensors reserves this name")
        entries[name] = entry(name, dtype, tuple(x.shape))
    return entries


def entry(name: str, dtype: str, shape: Shape) -> Entry:
    """Entry of the layout for one array.

    Parameters
    ----------
    name : str
        For messages.
    dtype : str
        Name of the dtype, such as ``"float32"`` or ``"bfloat16"``.
    shape : tuple of int

    Raises
    ------
    CheckpointError
        Safetensors cannot hold the dtype.
    """
    if dtype not in _CODES:
        raise CheckpointError(f"{name} has dtype {dtype}, which safetensors cannot hold")
    return Entry(_CODES[dtype], shape)


def write(
    path: files.File, arrays: Mapping[str, np.ndarray], header: Mapping[str, str], narrow: frozenset[str]
) -> None:
    """Write arrays and header. If this fails, an old file of this name stays as it is.

    Parameters
    ----------
    path : str, PathLike or binary file
    arrays : mapping of str to array
    header : mapping of str to str
        The caller's part of the metadata.
    narrow : frozenset of str
        Names of the arrays to write as bfloat16.

    Raises
    ------
    CheckpointError
        Safetensors cannot hold a name, a dtype or a text, the folder is missing, or the file cannot be written.
    """
    try:
        entries = described(arrays, narrow)
        for key, words in header.items():
            claims.text(key, "a key of the header")
            claims.text(words, f"the header's {key!r}")
    except CheckpointError as error:
        raise CheckpointError(f"cannot save {files.label(path)}: {error}") from error
    # Largest items first, so that every tensor is aligned.
    order = sorted(entries, key=lambda name: (-entries[name].size // max(1, prod(entries[name].shape)), name))
    data = {name: _bytes(bfloat16(arrays[name]) if name in narrow else _native(arrays[name])) for name in order}
    head = _head({name: entries[name] for name in order}, data, dict(sorted(header.items())))
    with files.writing(path) as put:
        put(len(head).to_bytes(8, "little") + head)
        for name in order:
            put(data[name].data)


def _head(entries: Mapping[str, Entry], data: Mapping[str, np.ndarray], header: dict[str, str]) -> bytes:
    """The layout as JSON, with digests, padded so that the tensors begin at a multiple of eight bytes."""
    digests = _digests((name, entry, data[name]) for name, entry in entries.items())
    listed = {"algorithm": _ALGORITHM, "entries": digests, "header": _seal(header, digests)}
    layout: dict[str, Any] = {_METADATA: header | {_DIGESTS: json.dumps(listed)}}
    start = 0
    for name, entry in entries.items():
        end = start + data[name].nbytes
        layout[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    head = json.dumps(layout, ensure_ascii=False, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def _native(x: np.ndarray) -> np.ndarray:
    """`x` in row-major order and in the byte order of the machine, which is that of the file: little-endian."""
    return np.require(x, x.dtype.newbyteorder("="), ["C"])


def _bytes(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1).view(np.uint8)


# -------------------------------------------------------------------- digests


def _digests(tensors: Iterable[tuple[str, Entry, np.ndarray]]) -> dict[str, str]:
    """The digest of every tensor with its name, dtype and shape. Several threads work if there is much data."""
    tensors = list(tensors)
    if sum(data.nbytes for *_, data in tensors) < _MANY:
        return {name: _digest(name, entry, data) for name, entry, data in tensors}
    with ThreadPoolExecutor(min(4, cpu_count() or 1)) as pool:  # hashing releases the GIL
        digests = list(pool.map(lambda tensor: _digest(*tensor), tensors))
    return {name: digest for (name, *_), digest in zip(tensors, digests, strict=True)}


def _digest(name: str, entry: Entry, data: np.ndarray) -> str:
    state = blake2b(json.dumps([name, *entry]).encode(), digest_size=16)
    state.update(data.data)
    return state.hexdigest()


def _seal(words: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The digest of all metadata and of all digests. It reveals missing entries, too."""
    sealed = json.dumps([sorted(words.items()), sorted(digests.items())])
    return blake2b(sealed.encode(), digest_size=16).hexdigest()


# -------------------------------------------------------------------- reading


class _UnsupportedError(CheckpointError):
    """The file is complete, but has a tensor of a kind that cannot be read here."""


class Contents:
    """An open file. Its layout is read and checked already; `arrays` reads its tensors.

    Parameters
    ----------
    label : str
        The file in messages.
    source : Source
        Its bytes.
    verify : bool
        Whether to check digests.

    Attributes
    ----------
    metadata : dict of str to str
        Without the digests.
    entries : dict of str to Entry
        In the order of the file.
    digests : dict of str to str, or None
        None if `verify` is false or the file has none. Other programs write none, and neither did the first format of
        `tnc`.

    Raises
    ------
    CheckpointError
        The file is truncated, damaged or not a safetensors file, or has a tensor of a kind that cannot be read here.
    """

    def __init__(self, label: str, source: files.Source, *, verify: bool) -> None:
        self._label, self._source, self._verify = label, source, verify
        try:
            layout = claims.parse(source.take(self._length()).tobytes(), "the layout")
            self.metadata = _metadata(claims.members(layout, "the layout").pop(_METADATA, {}))
            self.entries = _entries(layout)
            end = sum(entry.size for entry in self.entries.values())
            if source.left is not None and source.left != end:
                raise EOFError(f"{end:,} bytes of tensors are announced, {source.left:,} are there")
        except _UnsupportedError as error:
            raise CheckpointError(f"cannot load {label}: {error}") from error
        except (CheckpointError, EOFError) as error:
            raise self._unread(error) from error
        self.digests = self._checked_digests(self.metadata.pop(_DIGESTS, None))

    def _length(self) -> int:
        length = int.from_bytes(self._source.take(8).tobytes(), "little")
        if not 0 < length <= _LONGEST:
            raise CheckpointError(f"a layout of {length:,} bytes is announced")
        return length

    def _unread(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot load {self._label}: truncated or not a safetensors file ({error})")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"cannot load {self._label}: {what} is damaged: its digest is not that of the saved data. "
            "Copy or create the file again; verify=False loads it as it is"
        )

    def _checked_digests(self, words: str | None) -> dict[str, str] | None:
        """The digests of the entries, if the file has any and they are wanted. The metadata must have their digest."""
        if words is None or not self._verify:
            return None
        try:
            data = claims.parse(words, "the list of digests")
            claims.members(data, "the list of digests", ("algorithm", "entries", "header"))
            if data["algorithm"] != _ALGORITHM:
                claims.fail("the kind of its digests", data["algorithm"], repr(_ALGORITHM))
            digests = claims.members(data["entries"], "the list of digests")
        except CheckpointError as error:
            raise CheckpointError(f"cannot load {self._label}: damaged, {error}") from error
        odd = sorted(set(digests) ^ set(self.entries))
        if odd:
            raise CheckpointError(
                f"cannot load {self._label}: damaged, {odd[0]!r} is a tensor or has a digest, not both"
            )
        if any(not isinstance(d, str) for d in digests.values()) or _seal(self.metadata, digests) != data["header"]:
            raise self._damaged("the header")
        return digests

    def arrays(self) -> tuple[dict[str, np.ndarray], frozenset[str]]:
        """All tensors, and the names of those that are bfloat16 in the file (returned as float32).

        Raises
        ------
        CheckpointError
            The file is truncated, or a tensor is not what was saved.
        """
        data = self._data()
        if self.digests is not None:
            actual = _digests((name, entry, data[name]) for name, entry in self.entries.items())
            for name, digest in actual.items():
                if digest != self.digests[name]:
                    raise self._damaged(repr(name))
        narrow = frozenset(name for name, entry in self.entries.items() if entry.dtype == "BF16")
        try:
            return {name: _array(entry, data.pop(name)) for name, entry in self.entries.items()}, narrow
        except ValueError as error:  # more axes than this version of NumPy allows
            raise CheckpointError(f"cannot load {self._label}: {error}") from error

    def _data(self) -> dict[str, np.ndarray]:
        """Bytes of every tensor; nothing may follow them."""
        try:
            data = {name: self._source.take(entry.size) for name, entry in self.entries.items()}
            if not self._source.ended():
                raise EOFError("bytes follow after the last tensor")
        except (CheckpointError, EOFError) as error:
            raise self._unread(error) from error
        return data


def _array(entry: Entry, data: np.ndarray) -> np.ndarray:
    flat = data.view(np.dtype(_DTYPES.get(entry.dtype, "uint16")))
    return (widen(flat) if entry.dtype == "BF16" else flat).reshape(entry.shape)


def _metadata(words: Any) -> dict[str, str]:
    pairs = claims.members(words, _METADATA).items()
    return {key: claims.text(value, f"{key!r} of the metadata") for key, value in pairs}


class _Span(NamedTuple):
    """Where a tensor lies in the file; spans are sorted by their first byte."""

    start: int
    stop: int  # one after the last byte
    name: str
    entry: Entry


def _span(name: str, data: Any) -> _Span:
    """One tensor of a layout."""
    where = f"tensor {claims.text(name, 'a name')!r}"
    claims.members(data, where, ("dtype", "shape", "data_offsets"))
    dtype = claims.text(data["dtype"], f"the dtype of {where}")
    if dtype not in _DTYPES and dtype != "BF16":
        raise _UnsupportedError(f"{name} has dtype {dtype}, which is not supported")
    if len(claims.items(data["shape"], where)) > MOST_AXES:
        raise _UnsupportedError(f"{name} has {len(data['shape'])} axes, more than {MOST_AXES}")
    shape = tuple(claims.whole(n, f"the shape of {where}") for n in data["shape"])
    offsets = claims.items(data["data_offsets"], where)
    if len(offsets) != 2:
        claims.fail(f"the place of {where}", offsets, "a list of its first byte and the one after its last")
    start, stop = (claims.whole(n, f"an offset of {where}") for n in offsets)
    entry = Entry(dtype, shape)
    if stop - start != entry.size:
        raise CheckpointError(f"{where} is {dtype} of shape {list(shape)}, but has {stop - start:,} bytes")
    return _Span(start, stop, name, entry)


def _entries(layout: Mapping[str, Any]) -> dict[str, Entry]:
    """Entries in the order of the file. They must fill it from its first byte on, without gaps and overlaps."""
    spans = sorted(_span(name, data) for name, data in layout.items())
    end = 0
    for start, stop, name, _ in spans:
        if start != end:
            raise CheckpointError(f"tensor {name!r} begins at {start}, but the data before it end at {end}")
        end = stop
    return {span.name: span.entry for span in spans}


@contextmanager
def opened(path: files.File, *, verify: bool = True) -> Iterator[Contents]:
    """Open a file and check its layout. If `verify` is set and the file has digests, check that of its metadata, too.

    Raises
    ------
    CheckpointError
        There is no such file, it is truncated, damaged, or not a safetensors file.
    """
    with files.reading(path) as source:
        yield Contents(files.label(path), source, verify=verify)


def read(path: files.File, *, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str], frozenset[str]]:
    """Arrays, header, and the names of the arrays that are bfloat16 in the file (returned as float32).

    Parameters
    ----------
    path : str, PathLike or binary file
    verify : bool
        Whether to check the digests of a file that has them.

    Raises
    ------
    CheckpointError
        There is no such file, it is truncated, damaged, or not a safetensors file.
    """
    with opened(path, verify=verify) as contents:
        arrays, narrow = contents.arrays()
        return arrays, contents.metadata, narrow
