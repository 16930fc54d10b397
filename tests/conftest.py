"""The places every test runs over: array libraries and devices, those that are not here skipped by name."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import cache

import array_api_strict
import numpy as np
import pytest
from hypothesis import settings

import tnc
from tests.pairwise import thinned
from tnc.errors import BackendError, MissingExtraError
from tnc.fit import alternating, trees

# Plans are chosen by cost: with constants stated, not measured, every run of the tests takes the same ones.
os.environ["TNC_COST"] = "flops=5e10,bytes=8e9,call=1e-5,item=3e-7"

settings.register_profile("tnc", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("tnc")


def pytest_configure(config):
    config.addinivalue_line("markers", "pairwise(why, together=2): every two values meet, no more (pairwise.py)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before `-k` and `-m` choose: what they choose from is what the whole suite runs."""
    items[:], gone = thinned(items)
    if gone:
        config.hook.pytest_deselected(items=gone)


PLACES = [
    *("numpy", "array_api_strict", "torch"),
    *(pytest.param(name, marks=pytest.mark.gpu) for name in ("torch:cuda", "cupy")),
]


@cache
def get_place(name: str) -> tnc.backends.Backend | str:
    """The backend of that name, or why it is not here."""
    if name == "array_api_strict":
        return tnc.backends.of(array_api_strict.asarray([0.0]))
    try:
        return tnc.backends.get(name)
    except (BackendError, MissingExtraError) as error:
        return f"{name}: {error}"


# Small weights are fitted from many starts, which takes most of a fit's time: the same road with few of them.
FEW = {(alternating, "_STARTS"): 6, (alternating, "_FINALISTS"): 2, (trees, "_TREES"): 1}
ALL = {(module, name): getattr(module, name) for module, name in FEW}
for (module, name), few in FEW.items():
    setattr(module, name, few)


@pytest.fixture
def hasty(monkeypatch):
    """Least squares that end after a sweep or two, for tests that do not ask how near a fit comes."""
    monkeypatch.setattr(alternating, "_WORK", 0.0)


@pytest.fixture
def all_starts(monkeypatch):
    """As many starts as users get, for tests of where fits end."""
    for (module, name), many in ALL.items():
        monkeypatch.setattr(module, name, many)


@pytest.fixture(params=PLACES)
def place(request):
    """A backend. New arrays of its library land on its device while the test runs."""
    found = get_place(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    with found.place if found.device and "cuda" in found.device else nullcontext():
        yield found


@pytest.fixture
def xp(place):
    """The array namespace of the backend."""
    return place.xp


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def said_without():
    """What an expression of `Network` prints in a process that has no module of those names, nor all of `tnc`."""

    def run(missing, expression):
        code = f"import sys, types; sys.modules.update(dict.fromkeys({missing!r}))\n"
        code += "p = types.ModuleType('tnc'); p.__path__ = [sys.argv[1]]; sys.modules['tnc'] = p\n"
        code += f"from tnc.network import Network; print({expression})"
        command = [sys.executable, "-c", code, *tnc.__path__]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return run


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    """Every test starts without a backend set, whatever the shell or another test chose."""
    monkeypatch.delenv("TNC_BACKEND", raising=False)
    yield
    tnc.set_backend(None)
