"""How long layers take: the forward pass in evaluation, and a step of training."""

from __future__ import annotations

from functools import cache

import pytest

torch = pytest.importorskip("torch")

import tnc  # noqa: E402
import tnc.nn  # noqa: E402

SIZES = {"Linear": (512, 512), "Conv2d": (32, 32), "Embedding": (4096, 128)}
FORMATS = {"Linear": "mpo", "Conv2d": "tucker", "Embedding": "mpo"}


@cache
def layer(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1} if kind == "Conv2d" else {}
    decomposition = tnc.decompositions[FORMATS[kind]]()
    return getattr(tnc.nn, kind)(*SIZES[kind], **options, decomposition=decomposition, rank=tnc.Ratio(0.05))


def batch_of(kind: str, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "Embedding":
        return torch.randint(SIZES[kind][0], (batch,), generator=generator)
    side = (16, 16) if kind == "Conv2d" else ()
    return torch.randn(batch, SIZES[kind][0], *side, generator=generator)


def cells(*short: tuple[str, int]) -> list:
    every = [(kind, batch) for kind in SIZES for batch in (1, 64)]
    return [pytest.param(*cell, marks=[pytest.mark.short] * (cell in short)) for cell in every]


@pytest.mark.parametrize(("kind", "batch"), cells(("Linear", 1), ("Conv2d", 1), ("Embedding", 64)))
def test_evaluation(benchmark, kind, batch):
    module, input = layer(kind).eval(), batch_of(kind, batch)
    with torch.no_grad():
        module(input)  # what is kept between calls is made here
        output = benchmark(module, input)
    assert output.isfinite().all()


@pytest.mark.parametrize(("kind", "batch"), cells(("Linear", 64), ("Conv2d", 1), ("Embedding", 64)))
def test_training(benchmark, kind, batch):
    module, input = layer(kind).train(), batch_of(kind, batch)
    parameters = list(module.parameters())

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(module(input).square().sum(), parameters)

    gradients = benchmark(step)
    assert all(gradient.isfinite().all() for gradient in gradients)
