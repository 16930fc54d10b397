"""The papers' data sets in TNC_DATA: every format they are distributed in; damaged and foreign files are refused."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.papers import data
from benchmarks.papers.data import cifar
from tests.papers.distributed import assert_same, binary, grid, idx, in_batches, publish, python2, tiny, write_ten
from tnc.demo.data import IDX_NAMES, DataError

pytestmark = pytest.mark.usefixtures("root")

REAL = os.environ.get("TNC_DATA", "")  # before a test's own


# ---------------------------------------------------------------------------------------- formats in TNC_DATA


@pytest.mark.parametrize("form", ["binary", "python 2", "python 3"])
@pytest.mark.parametrize("sub", cifar.TEN.folders)
def test_cifar10_is_read_as_it_is_distributed(root, form, sub, monkeypatch):
    write_ten(root / sub, tiny(10, 3), form)
    with pytest.raises(
        DataError, match=r"the training images .* not the published ones \(checksum \w{12}, not \w{12}\)"
    ):
        data.load("cifar10")
    publish(monkeypatch, "cifar10", tiny(10, 3))
    assert_same(data.load("cifar10"), in_batches(tiny(10, 3)))


@pytest.mark.parametrize("form", ["binary", "python", "grid"])
def test_cifar100_has_its_fine_labels(root, form, monkeypatch):
    images, folder = tiny(20, 6, 100), root / "cifar100"
    publish(monkeypatch, "cifar100", images)
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


def test_cifar100_is_taken_in_any_order_and_not_with_a_pixel_or_a_label_changed(root, monkeypatch):
    images, folder = tiny(20, 6, 100), root / "cifar100"
    publish(monkeypatch, "cifar100", images)
    folder.mkdir()
    (folder / "train.bin").write_bytes(binary(*images[:2], coarse=True))

    (folder / "test.bin").write_bytes(binary(images.test_images[::-1], images.test_labels[::-1], coarse=True))
    np.testing.assert_array_equal(data.load("cifar100").test_labels, images.test_labels[::-1])

    for place in (1, -1):  # the first fine label, the last pixel
        changed = bytearray(binary(*images[2:], coarse=True))
        changed[place] ^= 1
        (folder / "test.bin").write_bytes(changed)
        with pytest.raises(DataError, match=r"the test images and labels in .*cifar100 are not the published ones"):
            data.load("cifar100")


@pytest.mark.parametrize(("name", "sub"), [("mnist", "mnist"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_are_read(root, name, sub, monkeypatch):
    images = tiny(3, 2, shape=(28, 28))
    (root / sub).mkdir(parents=True)
    for file, array in zip(IDX_NAMES, images, strict=True):
        (root / sub / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte .* not the published one \(sha256 \w{12}, not \w{12}\)"
    ):
        data.load(name)
    publish(monkeypatch, name, images)
    assert_same(data.load(name), images)


@pytest.mark.parametrize("form", ["binary", "python 2"])
def test_cifar10_with_a_pixel_changed_is_refused(root, form, monkeypatch):
    images = tiny(10, 3)
    publish(monkeypatch, "cifar10", images)
    images.test_images[2, 31, 31, 2] ^= 1
    write_ten(root / "cifar10", images, form)
    with pytest.raises(DataError, match=r"the test images and labels in .*cifar10 are not the published ones"):
        data.load("cifar10")


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
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 4), r"with labels int64\(9,\)"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, 4), "images float64"),
    ],
)
def test_pickles_of_something_else_are_refused(root, held, says):
    write_ten(root / "cifar10", tiny(10, 3), "python 3")
    (root / "cifar10" / "data_batch_1").write_bytes(held)
    with pytest.raises(DataError, match=says):
        data.load("cifar10")


def test_a_split_without_images_is_refused(root):
    write_ten(root / "cifar10", tiny(10, 3), "python 3")
    (root / "cifar10" / "test_batch").write_bytes(
        pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, 4)
    )
    with pytest.raises(DataError, match=r"images uint8\(0, 32, 32, 3\)"):
        data.load("cifar10")


@pytest.mark.parametrize(
    ("labels", "says"),
    [(b"", "y.npy cannot be read"), (b"junk", "y.npy cannot be read"), ([0.5, 1.5], r"labels float64\(2,\)")],
)
def test_labels_of_a_grid_that_are_none_are_refused(root, labels, says):
    grid(tiny(2, 1).train_images, 2, root / "a.webp")
    (root / "y.npy").write_bytes(labels) if isinstance(labels, bytes) else np.save(root / "y.npy", labels)
    with pytest.raises(DataError, match=says):
        cifar.HUNDRED._checked([root / "a.webp", root / "y.npy"], cifar.grid)


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


# -------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not (Path(REAL) / "cifar100").is_dir() or not REAL, reason="TNC_DATA has no cifar100")
def test_the_real_cifar100_has_the_published_moments(monkeypatch):
    monkeypatch.setenv("TNC_DATA", REAL)
    images = data.load("cifar100")
    assert images.train_images.shape == (50_000, 32, 32, 3) and images.test_images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(images.train_labels)) == {500} and set(np.bincount(images.test_labels)) == {100}
    mean = images.train_images.reshape(-1, 3).mean(0) / 255
    assert mean == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-8)
