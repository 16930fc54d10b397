"""Forward passes of one linear layer: dense, ours, and other libraries' at equal format and rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tnc

RANK = 8
BATCH = 64

pytestmark = pytest.mark.benchmark(group="forward-linear")


@pytest.fixture
def linear(weight: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = torch.from_numpy(weight).float()
    return layer.requires_grad_(False)


@pytest.fixture
def inputs(size: int) -> torch.Tensor:
    return torch.randn(BATCH, size, generator=torch.Generator().manual_seed(0))


def test_dense(benchmark, linear, inputs):
    assert benchmark(linear, inputs).shape == inputs.shape


@pytest.mark.parametrize("execution", ["dense", "factorized", "auto"])
def test_tnc(benchmark, linear, inputs, factors, execution):
    mpo = tnc.decompositions["mpo"](rows=factors, columns=factors)
    model = tnc.compress(torch.nn.Sequential(linear), mpo, rank=RANK, execution=execution)
    model.requires_grad_(False)
    output = benchmark(model, inputs)
    expected = torch.nn.functional.linear(inputs, model[0].weight, linear.bias)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", ["reconstructed", "factorized"])
def test_tensorly_torch(benchmark, linear, inputs, factors, implementation):
    tltorch = pytest.importorskip("tltorch")
    shape = {"in_tensorized_features": factors, "out_tensorized_features": factors, "auto_tensorize": False}
    layer = tltorch.FactorizedLinear.from_linear(
        linear, factorization="blocktt", rank=[1, RANK, RANK, 1], implementation=implementation, **shape
    )
    assert benchmark(layer.requires_grad_(False), inputs).shape == inputs.shape


def test_tednet(benchmark, inputs, factors):
    tensor_train = pytest.importorskip("tednet.tnn.tensor_train")
    layer = tensor_train.TTLinear(list(factors), list(factors), [RANK] * (len(factors) - 1))
    assert benchmark(layer.requires_grad_(False), inputs).shape == inputs.shape
