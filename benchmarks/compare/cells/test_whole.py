"""What a whole program pays: compressing a model, importing the library, memory at its highest."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache

import pytest

MODEL = """
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(1024, 256),
    torch.nn.ReLU(),
    torch.nn.Linear(256, 10),
)
"""
IMPORT = """
{first}
import time
begin = time.perf_counter()
import {module}
print(time.perf_counter() - begin)
"""
STEP = """
import resource, sys
import tnc
tnc.compress(model, "mpo", rank=0.1)
model(torch.randn(64, 3, 8, 8)).square().sum().backward()
with torch.no_grad():  # an optimizer of torch loads its compiler, which is most of the memory
    for parameter in model.parameters():
        parameter -= 1e-3 * parameter.grad
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
"""


def printed(code: str) -> float:
    """The number that a fresh process prints last."""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@cache
def dense() -> object:
    names: dict = {}
    exec(MODEL, names)
    return names["model"]


@pytest.mark.short
@pytest.mark.parametrize("method", ["mpo", "tucker"])
def test_compress(benchmark, method):
    pytest.importorskip("torch")
    import tnc

    def fresh() -> tuple:
        return (copy.deepcopy(dense()), method), {"rank": 0.1}

    model = benchmark.pedantic(tnc.compress, setup=fresh, rounds=2)
    assert model.tnc_report.rows


# What `import tnc.nn` takes beyond torch, of which we have no say, is what counts.
@pytest.mark.parametrize(
    ("module", "first"),
    [
        pytest.param("tnc", "import numpy", marks=pytest.mark.short, id="tnc"),
        pytest.param("tnc.nn", "import torch", id="tnc.nn"),
    ],
)
def test_import(benchmark, module, first):
    code = IMPORT.format(first=first, module=module)
    benchmark.extra_info["seconds"] = benchmark.pedantic(printed, (code,), rounds=1)


@pytest.mark.short
def test_peak_memory(benchmark):
    pytest.importorskip("torch")
    benchmark.extra_info["bytes"] = benchmark.pedantic(printed, (MODEL + STEP,), rounds=1)
