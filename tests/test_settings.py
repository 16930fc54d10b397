"""Which backend is in force: an argument before a context before the process before the environment."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tnc
from tnc.backends import get
from tnc.errors import UnknownNameError
from tnc.settings import current_backend, set_backend, use_backend

torch = pytest.importorskip("torch")


def name(spec=None):
    found = current_backend(spec)
    return found and (found.name if found.device is None else f"{found.name}:{found.device}")


def test_unset_means_where_the_weights_are():
    assert current_backend() is None
    weights = {"n": np.eye(6), "t": torch.eye(6, dtype=torch.float64)}
    found = tnc.compress_weights(weights, "svd", rank=2)
    assert isinstance(found["n"].cores[0], np.ndarray) and isinstance(found["t"].cores[0], torch.Tensor)


def test_precedence(monkeypatch):
    monkeypatch.setenv("TNC_BACKEND", "torch:meta")
    assert name() == "torch:meta"
    set_backend("torch")
    assert name() == "torch"
    with use_backend("numpy") as chosen:
        assert chosen.name == "numpy" and name() == "numpy"
        assert name("torch:cpu") == "torch:cpu"
        with use_backend("torch:cpu"):
            assert name() == "torch:cpu"
        assert name() == "numpy"
    assert name() == "torch"
    set_backend(None)
    assert name() == "torch:meta"
    monkeypatch.setenv("TNC_BACKEND", "")
    assert name() is None


def test_a_context_can_unset():
    set_backend("torch")
    with use_backend(None) as chosen:
        assert chosen is None and current_backend() is None
    assert name() == "torch"


def test_a_context_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), use_backend("torch"):
        raise ZeroDivisionError
    assert current_backend() is None


def test_backends_themselves_are_taken():
    mine = get("torch:cpu")
    set_backend(mine)
    assert current_backend() is mine
    with use_backend(get("numpy")):
        assert name() == "numpy"
    assert current_backend(mine) is mine


@pytest.mark.parametrize("verb", [set_backend, lambda spec: use_backend(spec).__enter__(), current_backend])
def test_an_unknown_backend_changes_nothing(verb):
    set_backend("torch")
    with pytest.raises(UnknownNameError, match=r"'nunpy' is not installed in 'tnc.backends'. Did you mean 'numpy'\?"):
        verb("nunpy")
    assert name() == "torch"


def test_an_unknown_backend_of_the_environment(monkeypatch):
    monkeypatch.setenv("TNC_BACKEND", "tensorflow")
    with pytest.raises(UnknownNameError, match="'tensorflow' is not installed"):
        tnc.compress_weights({"w": np.eye(4)}, "svd", rank=1)
    assert tnc.compress_weights({"w": np.eye(4)}, "svd", rank=1, backend="numpy").factorized


def test_contexts_belong_to_their_thread():
    seen, entered, left = {}, threading.Event(), threading.Event()

    def other():
        seen["before"] = name()
        with use_backend("torch"):
            entered.set()
            left.wait(10)
            seen["inside"] = name()
        seen["after"] = name()

    with use_backend("numpy"):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
        assert name() == "numpy"
        left.set()
        thread.join()
    assert seen == {"before": None, "inside": "torch", "after": None}


def test_the_setting_of_the_process_is_seen_by_all_threads():
    seen = []
    set_backend("torch")
    thread = threading.Thread(target=lambda: seen.append(name()))
    thread.start()
    thread.join()
    assert seen == ["torch"]


def test_the_setting_is_reachable_from_the_door():
    tnc.set_backend("torch")
    with tnc.use_backend("numpy"):
        assert name() == "numpy"
    assert name() == "torch"
