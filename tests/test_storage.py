"""The file: every dtype, shape and memory order there and back, as any other program reads it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tnc import storage
from tnc.errors import CheckpointError

NONE: frozenset[str] = frozenset()
DTYPES = [
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool", "complex64"),
]


def there_and_back(path, arrays, narrow=NONE, header=None):
    storage.write(path, arrays, header or {}, narrow)
    return storage.read(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, tmp_path, rng):
    x = (10 * rng.standard_normal((3, 4))).astype(dtype)
    arrays, header, narrow = there_and_back(tmp_path / "x.safetensors", {"x": x}, header={"a": "b"})
    assert arrays["x"].dtype == x.dtype and np.array_equal(arrays["x"], x)
    assert header == {"a": "b"} and narrow == NONE
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["x"], x)  # as any other program reads it


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 0, 3), (1, 1, 1, 1, 1)], ids=str)
def test_every_shape(shape, tmp_path, rng):
    arrays, _, _ = there_and_back(tmp_path / "x", {"a": np.float32(rng.standard_normal(shape)), "b": np.ones(2)})
    assert arrays["a"].shape == shape and arrays["b"].tolist() == [1.0, 1.0]


def test_every_memory_order(tmp_path, rng):
    x = rng.standard_normal((4, 6))
    views = {
        "t": x.T,
        "step": x[:, ::2],
        "back": x[::-1],
        "big": x.astype(">f8"),
        "wide": np.broadcast_to(x[0], (3, 6)),
    }
    arrays, _, _ = there_and_back(tmp_path / "x", views)
    for name, view in views.items():
        assert np.array_equal(arrays[name], view), name


def test_an_empty_file(tmp_path):
    assert there_and_back(tmp_path / "x", {}, header={"only": "words"}) == ({}, {"only": "words"}, NONE)


def test_names_may_be_anything(tmp_path):
    names = {"a.b/c d": np.ones(1), "ключ": np.ones(2), "__x__": np.ones(3)}
    assert set(there_and_back(tmp_path / "x", names)[0]) == set(names)


def test_a_dtype_the_format_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot save .*complex128"):
        storage.write(tmp_path / "x", {"x": np.ones(2, np.complex128)}, {}, NONE)
    assert os.listdir(tmp_path) == []


def test_a_name_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(there_and_back("x.safetensors", {"x": np.ones(1)})[0]) == {"x"}


def test_files_of_others(tmp_path, rng):
    x = {"a": rng.standard_normal((2, 3)), "b": np.arange(4)}
    save_file(x, tmp_path / "x", {"format": "np"})
    arrays, header, _ = storage.read(tmp_path / "x")
    assert header == {"format": "np"} and all(np.array_equal(arrays[k], x[k]) for k in x)
    arrays["a"] += 1  # they are ours to write


# ------------------------------------------------------------------ bfloat16


def test_bfloat16_there_and_back(tmp_path, rng):
    x = rng.standard_normal((5, 7)).astype(np.float32)
    arrays, _, narrow = there_and_back(tmp_path / "x", {"x": x, "y": x}, frozenset({"x"}))
    assert narrow == {"x"} and arrays["x"].dtype == np.float32
    assert np.array_equal(arrays["x"], storage.widen(storage.bfloat16(x))) and np.array_equal(arrays["y"], x)
    again, _, _ = there_and_back(tmp_path / "z", arrays, narrow)
    assert np.array_equal(again["x"], arrays["x"])


def test_every_bfloat16_keeps_its_bits():
    bits = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(storage.bfloat16(storage.widen(bits)), bits)


def test_bfloat16_is_that_of_torch(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    x = rng.standard_normal(1000).astype(np.float32) * 10.0 ** rng.integers(-40, 38, 1000)
    x[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38]
    x = x.astype(np.float32)
    storage.write(tmp_path / "x", {"x": x}, {}, frozenset({"x"}))
    theirs = torch.from_numpy(x).bfloat16()
    ours = load_torch(tmp_path / "x")["x"]
    assert ours.dtype == torch.bfloat16 and torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
