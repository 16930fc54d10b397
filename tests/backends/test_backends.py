"""Backends are places: arrays get there and back unchanged, and what is not here is said."""

from __future__ import annotations

import builtins
import sys

import array_api_strict
import numpy as np
import pytest

import tnc
from tnc.backends import Backend, get, move, of
from tnc.errors import BackendError, MissingExtraError

torch = pytest.importorskip("torch")

DTYPES = ["float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(place, dtype, rng):
    x = (10 * rng.standard_normal((3, 4))).astype(dtype)
    there = place.from_numpy(x)
    back = place.to_numpy(there)
    assert isinstance(back, np.ndarray) and back.dtype == x.dtype and np.array_equal(back, x)
    assert place.holds(there) and there.dtype == getattr(place.xp, dtype)


def test_of_knows_the_place(place, rng):
    found = of(place.from_numpy(rng.standard_normal(3)))
    assert type(found) is type(place) and found.xp is place.xp
    assert found.holds(place.from_numpy(rng.standard_normal(3)))


def test_moving_to_where_it_is_changes_nothing(place, rng):
    x = place.from_numpy(rng.standard_normal(3))
    assert move(x, place) is x


def test_moving_between_places(place, rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    for name in ("numpy", "torch"):
        other = get(name)
        there = move(other.from_numpy(x), place)
        assert place.holds(there) and np.array_equal(place.to_numpy(there), x)
        back = move(there, other)
        assert other.holds(back) and np.array_equal(other.to_numpy(back), x)


def test_synchronize(place):
    assert place.synchronize() is None


def test_memory_tells_shared_arrays(rng):
    for place in (get("numpy"), get("torch")):
        x = place.from_numpy(rng.standard_normal((4, 5)))
        y = place.from_numpy(place.to_numpy(x).copy())
        assert place.memory(x) == place.memory(x[:]) != place.memory(y)
        assert place.memory(x) != place.memory(x[:3]) and place.memory(x) != place.memory(x.T)
    strict = of(array_api_strict.asarray([0.0]))
    x = array_api_strict.asarray([1.0, 2.0])
    assert strict.memory(x) == strict.memory(x)


def test_text():
    assert repr(get("numpy")) == "<backend numpy>" and repr(get("torch:cpu")) == "<backend torch:cpu>"
    assert get(get("numpy")).name == "numpy"


@pytest.mark.parametrize("thing", [3, [1.0], "x", None], ids=repr)
def test_what_is_no_array(thing):
    with pytest.raises(BackendError, match=f"{type(thing).__name__} is no array of a known library; pass a NumPy"):
        of(thing)


# --------------------------------------------------------------------- numpy


@pytest.mark.parametrize("device", ["cuda", "gpu", "1"])
def test_numpy_has_one_device(device):
    with pytest.raises(BackendError, match=f"backend 'numpy' has no device '{device}' here.*Available: cpu"):
        get(f"numpy:{device}")
    assert get("numpy:cpu").device is None


# --------------------------------------------------------------------- torch


@pytest.mark.parametrize("device", ["cuda:99", "coda", "tpu:0", "xpu:0"])
def test_torch_devices_that_are_not_here(device):
    with pytest.raises(BackendError, match=f"backend 'torch' has no device '{device}' here.*Available: cpu"):
        get(f"torch:{device}")


def test_torch_takes_what_numpy_may_not_write(rng):
    x = rng.standard_normal((3, 4))
    x.flags.writeable = False
    there = get("torch").from_numpy(x)
    there += 1  # a copy: the original stays
    assert np.array_equal(there.numpy(), x + 1)
    assert np.array_equal(move(x, get("torch")).numpy(), x)


def test_torch_takes_any_memory_order(rng):
    x = rng.standard_normal((6, 4))
    for view in (x.T, x[::2], x[::-1], x.astype(">f8"), np.array(3.0)):
        assert get("torch").from_numpy(view).shape == move(view, get("torch")).shape == view.shape
        assert np.array_equal(get("torch").from_numpy(view).numpy(), view)
        assert np.array_equal(move(view, get("torch")).numpy(), view)


def test_torch_gives_what_needs_a_gradient(rng):
    x = torch.ones(3, requires_grad=True)
    assert get("torch").to_numpy(x).tolist() == [1.0, 1.0, 1.0]
    assert move(x, get("numpy")).tolist() == [1.0, 1.0, 1.0]


def test_bfloat16_becomes_float32_on_numpy():
    x = torch.tensor([1.0, 2.5, -3.0]).bfloat16()
    moved = move(x, get("numpy"))
    assert moved.dtype == np.float32 and moved.tolist() == [1.0, 2.5, -3.0]


def test_meta_is_a_place_without_values():
    x = torch.ones(3, device="meta")
    assert get("torch:meta").holds(x) and of(x).device == "meta"
    assert of(x).memory(x) != of(x).memory(torch.ones(3, device="meta"))


# ------------------------------------------------------------ what is missing


@pytest.mark.parametrize(("name", "library"), [("torch", "torch"), ("cupy", "cupy")])
def test_a_missing_library_names_the_extra(name, library, monkeypatch):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module.partition(".")[0] == library:
            raise ImportError(f"No module named {library!r}")
        return real(module, *args, **kwargs)

    monkeypatch.delitem(sys.modules, f"tnc.backends.{name}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"the backend '{name}' needs .*pip install 'tncompress\[{name}\]'"):
        get(name)


def test_cupy_without_a_device(monkeypatch):
    pytest.importorskip("cupy", reason="cupy: not installed")
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(BackendError, match="cupy"):
        get("cupy")


def test_any_library_of_the_standard_works_without_a_backend(rng):
    x = array_api_strict.asarray(rng.standard_normal((6, 8)))
    assert isinstance(of(x), Backend) and "array_api_strict" not in tnc.backends.registry
    found = tnc.compress_weights({"w": x}, "svd", rank=2)["w"]
    assert all(type(core) is type(x) for core in found.cores)
