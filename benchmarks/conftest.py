"""What every benchmark shares: a seed, one size list, and weights that resemble trained ones."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

PACKAGES = ("tncompress", "torch", "numpy", "opt_einsum", "tensorly", "tensorly-torch", "tednet")
SIZES = {256: (4, 8, 8), 1024: (8, 8, 16)}
"""Side of a square weight, and how it is factorized, for us and for the others alike."""


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(autouse=True)
def one_table_per_size(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> None:
    if "size" in request.fixturenames:
        benchmark.group = f"{benchmark.group}-{request.getfixturevalue('size')}"


@pytest.fixture
def factors(size: int) -> tuple[int, ...]:
    return SIZES[size]


@pytest.fixture
def weight(size: int) -> np.ndarray:
    return decaying(size)


@cache  # two QR decompositions take longer than most of what is timed
def decaying(size: int) -> np.ndarray:
    """A square matrix with singular values k^-0.7: between noise and a matrix of low rank."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(size, size)))[0] for _ in range(2))
    return left * np.arange(1, size + 1) ** -0.7 @ right


@pytest.fixture
def kernel() -> np.ndarray:
    """A convolution kernel of multilinear rank (24, 12, 3, 3) with a little noise."""
    random = np.random.default_rng(0)
    core = random.normal(size=(24, 12, 3, 3))
    left, right = random.normal(size=(64, 24)), random.normal(size=(32, 12))
    exact = np.einsum("abkl,oa,ib->oikl", core, left, right)
    return exact + 0.1 * exact.std() * random.normal(size=exact.shape)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the report names: versions and threads; not the name of the machine."""
    import torch

    machine_info["node"] = ""
    machine_info["threads"] = torch.get_num_threads()
    machine_info["versions"] = {name: version(name) for name in PACKAGES}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Where every alternative's seconds are kept, the length of whole rounds is of no interest."""
    for entry in output_json["benchmarks"]:
        if "seconds" in entry["extra_info"]:
            entry["stats"].pop("data", None)
