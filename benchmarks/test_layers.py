"""The grid: layers, formats, parameters kept, batches, inference and training; every library in one run.

One test is one cell. What pytest-benchmark times is a round in which each alternative has its turn (`paired`); the
seconds of each stand in ``extra_info``, so that one JSON file holds everything, and `report` takes several:

    pytest benchmarks/test_layers.py -k "linear1024 and mpo3 and 5pc" --benchmark-json=part.json

Convolutions of 512 images take seconds a call: those that keep 1 % and 20 % are marked ``slow``.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.layers import EXECUTIONS, FORMATS, LAYERS, planned_flops, training_flops, variants
from benchmarks.paired import Paired

pytestmark = pytest.mark.filterwarnings("default")  # a warning of another library is no error of ours


class Cell(NamedTuple):
    layer: str
    format: str
    percent: int
    batch: int
    mode: str

    def __str__(self) -> str:
        return f"{self.layer}-{self.format}-{self.percent}pc-b{self.batch}-{self.mode}"

    @property
    def slow(self) -> bool:
        return self.layer.startswith("conv") and self.batch == 512 and self.percent != 5


CELLS = [
    Cell(layer, format, percent, batch, mode)
    for layer in LAYERS
    for format in FORMATS
    for percent in (1, 5, 20)
    for batch in (1, 64, 512)
    for mode in ("inference", "training")
]


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """A layer that asks for more than the machine has gets an error, not the attention of the kernel."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (int(0.85 * total), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@lru_cache(maxsize=1)  # the cells of one layer follow each other
def layers_of(layer: str, format: str, percent: int) -> tuple[dict[str, nn.Module], dict[str, str]]:
    return variants(LAYERS[layer], format, percent / 100)


def inference(module: nn.Module, input: Tensor) -> Callable[[], Any]:
    """The forward pass in evaluation; what ours keep is made here, before any clock runs."""
    module.eval()

    def call() -> list[Tensor]:
        with torch.no_grad():
            return [module(input)]

    if hasattr(module, "_tnc"):
        call()
    return call


def training(module: nn.Module, input: Tensor) -> Callable[[], Any]:
    """Forward and backward, with the gradient of the input as in the middle of a network."""
    module.train()
    input = differentiable(input)
    wanted = [*module.parameters(), *([input] if input.requires_grad else [])]

    def call() -> tuple[Tensor, ...]:
        output = module(input)
        return torch.autograd.grad(output, wanted, ones(tuple(output.shape)))

    return call


def differentiable(input: Tensor) -> Tensor:
    """A copy that gets a gradient, unless it holds numbers of rows."""
    return input.clone().requires_grad_() if input.is_floating_point() else input


@lru_cache(maxsize=1)  # all alternatives get the same gradient
def ones(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape)


MODES = {"inference": inference, "training": training}


def saved_bytes(module: nn.Module, input: Tensor) -> int:
    """Bytes that autograd holds after a forward pass, parameters left out and no memory counted twice."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(differentiable(input))
    return sum(found.values())


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, id=str(cell), marks=[pytest.mark.slow] * cell.slow) for cell in CELLS]
)
def test_cell(benchmark, cell):
    layer = LAYERS[cell.layer]
    modules, missing = layers_of(cell.layer, cell.format, cell.percent)
    input = layer.input(cell.batch)
    calls = {name: MODES[cell.mode](module, input) for name, module in modules.items()}
    paired = Paired(calls, always=("dense", "tnc auto"))
    agree(paired.results)
    benchmark.group = f"{cell.layer} {cell.mode}"
    benchmark.pedantic(paired.round, rounds=paired.rounds)
    network = modules["tnc auto"].tnc_weight.network
    ours = {execution: modules[f"tnc {execution}"] for execution in EXECUTIONS}
    benchmark.extra_info.update(
        cell._asdict(),
        pattern=network.pattern,
        ranks=network.ranks,
        seconds={name: [float(f"{taken:.4g}") for taken in rounds] for name, rounds in paired.seconds.items()},
        missing={**missing, **paired.failed},
        parameters={name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        kept_bytes={name: kept_bytes(module) for name, module in ours.items()},
        saved_bytes={name: saved_bytes(modules[name], input) for name in paired.seconds if cell.mode == "training"},
        flops={
            "dense": layer.flops(cell.batch),
            "planned": planned_flops(layer, network, cell.batch, cell.mode == "training"),
            "training": training_flops(layer, network, cell.batch),
        },
    )


def agree(results: dict[str, Any]) -> None:
    """Fail unless our executions, which start with the same cores, return the same."""
    for execution in EXECUTIONS[1:]:
        for ours, expected in zip(results[f"tnc {execution}"], results["tnc dense"], strict=True):
            assert (ours - expected).norm() <= 1e-3 * expected.norm()


def kept_bytes(module: nn.Module) -> int:
    """Bytes of the rebuilt weight that a layer keeps between calls."""
    kept, rows = module.tnc_weight.kept, module._tnc.rows
    held = [] if kept is None else [kept.value]
    held += [] if rows is None or rows.store is None else [rows.store]
    return sum(value.numel() * value.element_size() for value in held)
