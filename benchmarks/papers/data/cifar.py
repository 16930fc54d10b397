"""CIFAR-10 and CIFAR-100 in the formats they are distributed in, each image brought to ``uint8[32, 32, 3]``.

binary
    Per image its label (CIFAR-100: coarse, then fine), then 1024 red, 1024 green and 1024 blue bytes.
python
    A pickled dict with ``data`` ``uint8[n, 3072]`` and ``labels`` or ``fine_labels``. It is read by an unpickler that
    knows arrays, strings, numbers and containers of those, and refuses everything else.
grid
    Lossless WebP pictures of 32 × 32 tiles row by row, labels in ``.npy`` files.

Both are checked here: by one checksum per split, of the images with their labels in whatever order, which is the same
for all three formats.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tnc.demo.data import DataError, Images
from tnc.errors import MissingExtraError

__all__ = ["HUNDRED", "TEN", "Distribution", "Format", "binary", "checksum", "picture", "unpickled"]

Split = tuple[np.ndarray, np.ndarray]
PIXELS = 32 * 32 * 3


class Format(NamedTuple):
    """Names of the files of both splits, and how those of one split are read."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Sequence[Path]], Split]


class Distribution(NamedTuple):
    """The folders a data set is looked for in, the formats it may have there, and the `checksum` of both splits."""

    classes: int
    folders: tuple[str, ...]
    formats: tuple[Format, ...]
    sums: tuple[str, str]

    @property
    def wanted(self) -> str:
        """The folders and files that would do, for messages."""
        files = (", ".join((*made.train, *made.test)) for made in self.formats)
        return f"{' or '.join(self.folders)} with one of: {'; '.join(files)}"

    def find(self, root: Path) -> Images | None:
        """The first format of which `root` holds any file, or None.

        Raises
        ------
        DataError
            Some of its files are missing, one is malformed, or together they are not what was published.
        """
        for folder in (root / sub for sub in self.folders):
            for made in self.formats:
                train, test = ([folder / name for name in names] for names in (made.train, made.test))
                missing = [path.name for path in (*train, *test) if not path.is_file()]
                if len(missing) == len(train) + len(test):
                    continue
                if missing:
                    raise DataError(f"TNC_DATA: {folder} lacks {', '.join(missing)}.")
                parts = self._checked(train, made.read), self._checked(test, made.read)
                self._published(folder, parts)
                return Images(*parts[0], *parts[1])
        return None

    def _published(self, folder: Path, parts: tuple[Split, Split]) -> None:
        for name, part, expected in zip(("training", "test"), parts, self.sums, strict=True):
            if (found := checksum(*part)) != expected:
                raise DataError(
                    f"TNC_DATA: the {name} images and labels in {folder} are not the published ones "
                    f"(checksum {found[:12]}, not {expected[:12]}): get the files again."
                )

    def _checked(self, paths: Sequence[Path], read: Callable[[Sequence[Path]], Split]) -> Split:
        images, labels = read(paths)
        where = f"TNC_DATA: {paths[0].parent}/{paths[0].name}"
        right = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.dtype.kind in "iu"
        if not right or labels.shape != images.shape[:1] or not len(labels):
            found = f"images {images.dtype}{images.shape} with labels {labels.dtype}{labels.shape}"
            raise DataError(f"{where} pairs {found}.")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise DataError(f"{where} has labels up to {labels.max()}, of {self.classes} classes.")
        return images, labels.astype(np.uint8)


def checksum(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 of the sorted sha256 of every label with its image: the same for every order of the images."""
    rows = (bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True))
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).hexdigest()


def _planes_last(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


# ---------------------------------------------------------------------------------------- the three formats


def binary(paths: Sequence[Path], labels: int) -> Split:
    """Files of the binary version, `labels` bytes before every image; the last of them is the label."""
    parts = []
    for path in paths:
        raw = np.fromfile(path, np.uint8)
        if not raw.size or raw.size % (labels + PIXELS):
            raise DataError(f"{path} has {raw.size} bytes, no multiple of {labels} + {PIXELS}.")
        parts.append(raw.reshape(-1, labels + PIXELS))
    rows = np.concatenate(parts)
    return _planes_last(rows[:, labels:]), rows[:, labels - 1]


def python(paths: Sequence[Path], key: bytes) -> Split:
    """Files of the Python version, whose labels are under `key`."""
    found = [unpickled(path) for path in paths]
    try:
        rows = np.concatenate([np.asarray(held[b"data"]).reshape(-1, PIXELS) for held in found])
        return _planes_last(rows), np.concatenate([np.asarray(held[key], np.int64) for held in found])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{paths[0].parent}: not CIFAR's dict of data and {key.decode()} ({error!r}).") from error


# How arrays are put together, as numpy names it before 2.0 and since.
_reconstruct = np.empty(0).__reduce__()[0]
HARMLESS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows no function or class but `HARMLESS`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data do not need")
        return HARMLESS[module, name]


def unpickled(path: Path) -> Any:
    """The plain data in a pickle file; strings of Python 2 are bytes.

    Raises
    ------
    DataError
        The file is no pickle, or would run code.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a malformed pickle may raise anything
        raise DataError(f"{path} was not unpickled: {error}.") from error


def grid(paths: Sequence[Path]) -> Split:
    """Pictures of tiles, and last the file of the labels."""
    parts = []
    for path in paths[:-1]:
        tiles = picture(path)
        rows, columns = tiles.shape[0] // 32, tiles.shape[1] // 32
        if tiles.shape != (32 * rows, 32 * columns, 3):
            raise DataError(f"{path} is {tiles.shape}, no grid of 32 × 32 tiles in three colours.")
        tiles = tiles.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
        parts.append(tiles.reshape(-1, 32, 32, 3))
    try:
        return np.concatenate(parts), np.load(paths[-1], allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{paths[-1]} cannot be read: {error}") from error


def picture(path: Path) -> np.ndarray:
    """The pixels of a picture file, ``uint8[height, width, 3]``."""
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover - needs an environment without Pillow
        raise MissingExtraError(f"{path.name} is a picture, which needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
PARTS = tuple(f"train_{k}.webp" for k in range(5))
TEN = Distribution(
    10,
    ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar10"),
    (
        Format(tuple(f"{name}.bin" for name in BATCHES), ("test_batch.bin",), partial(binary, labels=1)),
        Format(BATCHES, ("test_batch",), partial(python, key=b"labels")),
    ),
    # Of the binary version, whose six files had the published checksums.
    (
        "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85",
        "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c",
    ),
)
HUNDRED = Distribution(
    100,
    ("cifar-100-binary", "cifar-100-python", "cifar100"),
    (
        Format(("train.bin",), ("test.bin",), partial(binary, labels=2)),
        Format(("train",), ("test",), partial(python, key=b"fine_labels")),
        Format((*PARTS, "y_train.npy"), ("test.webp", "y_test.npy"), grid),
    ),
    # Of a lossless copy whose channels have the published means and deviations; the published checksums are those of
    # the python version's files, which cannot be written again from images and labels.
    (
        "36ce7a701fbea47796e570c34382aad50f2539687cfcbc6ae96e2f56530d29b6",
        "d3cd5d87a1b9317a0982c8ef5535fe3b86da8da90b13ce5e9b23ea06400dd5eb",
    ),
)
