"""Deep products of cores run in float32 at least: half precision loses digits at every step, in gradients most."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tnc import Factorization
from tnc.contract import dense, recipe
from tnc.fit.gradient import gradients
from tnc_plugins.gates import start

torch = pytest.importorskip("torch")

DEEP = ["adtn(depth=1)", "adtn(depth=2)", "adtn(depth=4)", "mpo(order=7)"]
SHORT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def cores_of(spec, network):
    """Gates near the identity, or cores at random."""
    rng = np.random.default_rng(1)
    return start(network) if spec.startswith("adtn") else [rng.standard_normal(s) for s in network.core_shapes]


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("spec", [*DEEP, "svd", "mpo", "stt"])
def test_weights_and_gradients_are_as_good_as_their_dtype(spec, dtype):
    network = tnc.decompositions.parse(spec).network((64, 64), 2)
    rounded = [torch.from_numpy(core).to(getattr(torch, dtype)) for core in cores_of(spec, network)]
    upstream = torch.from_numpy(np.random.default_rng(2).standard_normal((64, 64))).to(rounded[0].dtype)
    found = []
    for cores in (rounded, [core.double() for core in rounded]):
        cores = [core.clone().requires_grad_() for core in cores]
        weight = Factorization(network, cores, (64, 64)).dense()
        assert weight.dtype == cores[0].dtype
        (weight * upstream.to(weight.dtype)).sum().backward()
        assert all(core.grad.dtype == core.dtype for core in cores)
        found.append([weight.detach().double(), *(core.grad.double() for core in cores)])
    for short, exact in zip(*found, strict=True):
        assert float((short - exact).norm() / exact.norm()) <= 2 * SHORT[dtype]


@pytest.mark.parametrize("spec", DEEP)
def test_numpy_too(spec):
    network = tnc.decompositions.parse(spec).network((16, 16), 2)
    cores = [core.astype(np.float16) for core in cores_of(spec, network)]
    short, exact = (dense(network, [core.astype(t) for core in cores]) for t in ("float16", "float64"))
    assert short.dtype == np.float16 and recipe(network).deep == (len(cores) > 6 or network.feed is not None)
    assert np.linalg.norm(short - exact) <= 2.0**-11 * np.linalg.norm(exact)
    assert len(gradients(network, [core.astype("float32") for core in cores], lambda w: w)) == len(cores)
