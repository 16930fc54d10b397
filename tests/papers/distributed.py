"""Made-up pictures, in the files in which the papers' data sets are distributed."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.papers import data
from benchmarks.papers.data import cifar
from tnc.demo.data import Images, idx_sha256


def tiny(train: int, test: int, classes: int = 10, shape=(32, 32, 3)) -> Images:
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (n, *shape), np.uint8) for n in (train, test)]
    y = [rng.integers(0, classes, n).astype(np.uint8) for n in (train, test)]
    return Images(x[0], y[0], x[1], y[1])


def assert_same(a: Images, b: Images) -> None:
    for found, expected in zip(a, b, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8 and found.flags.c_contiguous


def publish(monkeypatch, name: str, images: Images) -> None:
    """Let these images be what was published under that name."""
    find = data.SOURCES[name].find
    if name.startswith("cifar"):
        sums = cifar.checksum(*images[:2]), cifar.checksum(*images[2:])
        find = find.__self__._replace(sums=sums).find
    else:
        find = partial(find, sums=tuple(map(idx_sha256, images)))
    monkeypatch.setitem(data.SOURCES, name, data.SOURCES[name]._replace(find=find))


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


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as MNIST's files have it: type, axes, sizes, values."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
