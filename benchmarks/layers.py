"""The layers of the grid: dense, ours, and TensorLy-Torch's and tednet's with the same ranks.

Every library gets the factors and the ranks of our network, so that all hold the same number of parameters; a library
that does not offer a format says so.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

import tnc
from tnc import contract
from tnc.contract import convolution, lookup, strategies
from tnc.contract.plans import Plan
from tnc.network import Network
from tnc.nn.runtime.schedule import constants

SIDE_OF_KERNEL = 3
EXECUTIONS = ("dense", "factorized", "auto")


@dataclass(frozen=True)
class Layer:
    """A dense layer and its input: features, or channels and the side of the image."""

    kind: str
    sizes: tuple[int, int]
    side: int = 0

    def dense(self) -> nn.Module:
        return getattr(nn, self.kind)(*self.sizes, **self.options)

    def ours(self, decomposition: tnc.Decomposition, kept: float) -> dict[str, nn.Module]:
        """The layer by execution; all three start with the same cores."""
        torch.manual_seed(0)
        made = getattr(tnc.nn, self.kind)
        first = made(*self.sizes, **self.options, decomposition=decomposition, rank=tnc.Ratio(kept))
        found = {}
        for execution in EXECUTIONS:
            found[execution] = copy.deepcopy(first)
            found[execution]._tnc.execution = execution
            found[execution]._tnc_reschedule()
        return found

    @property
    def options(self) -> dict[str, int]:
        return {"kernel_size": SIDE_OF_KERNEL, "padding": SIDE_OF_KERNEL // 2} if self.side else {}

    def input(self, batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.kind == "Embedding":
            return torch.randint(self.sizes[0], (batch,), generator=generator)
        shape = (batch, self.sizes[0], *(self.side, self.side)[: 2 * bool(self.side)])
        return torch.randn(shape, generator=generator)

    def flops(self, batch: int) -> int:
        """Multiplications and additions of the dense layer; a lookup has none."""
        if self.kind == "Embedding":
            return 0
        return 2 * self.positions(batch) * prod(self.sizes) * (SIDE_OF_KERNEL**2 if self.side else 1)

    def positions(self, batch: int) -> int:
        """How many vectors pass through: what plans are chosen by."""
        return batch * max(1, self.side**2)


LAYERS = {
    "linear1024": Layer("Linear", (1024, 1024)),
    "linear4096": Layer("Linear", (4096, 4096)),
    "linear768": Layer("Linear", (768, 3072)),
    "conv64": Layer("Conv2d", (64, 64), 32),
    "conv256": Layer("Conv2d", (256, 256), 14),
    "conv512": Layer("Conv2d", (512, 512), 7),
    "embedding": Layer("Embedding", (50257, 768)),
}
FORMATS = {
    "mpo2": ("mpo", {"order": 2}),
    "mpo3": ("mpo", {"order": 3}),
    "mpo4": ("mpo", {"order": 4}),
    "tucker": ("tucker", {}),
    "ring": ("ring", {}),
    "stt": ("stt", {}),
}


def decomposition(name: str) -> tnc.Decomposition:
    plugin, fields = FORMATS[name]
    return tnc.decompositions[plugin](**fields)


# ------------------------------------------------------------ other libraries


@dataclass
class Ranks:
    """Factors and ranks of our network, under the names other libraries give them."""

    network: Network
    rows: list[int] = field(init=False)
    columns: list[int] = field(init=False)
    bonds: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        sizes, outer = self.network.sizes, self.network.outer
        self.rows, self.columns = ([sizes[i] for i in outer if i[0] == letter] for letter in "mn")
        self.bonds = {bond: sizes[bond] for bond in sorted(self.network.bonds)}

    @property
    def ranks(self) -> list[int]:
        return list(self.bonds.values())


def tltorch_matrix(layer: Layer, factorization: str, ranks: list[int], r: Ranks) -> dict[str, Callable[[], nn.Module]]:
    import tltorch

    if layer.kind == "Embedding":  # looked up row by row: there is one implementation
        return {
            "factorized": lambda: tltorch.FactorizedEmbedding(
                prod(r.rows),
                prod(r.columns),
                auto_tensorize=False,
                tensorized_num_embeddings=tuple(r.rows),
                tensorized_embedding_dim=tuple(r.columns),
                factorization=factorization,
                rank=ranks,
            )
        }
    return {
        way: lambda way=way: tltorch.FactorizedLinear(
            tuple(r.columns), tuple(r.rows), factorization=factorization, rank=ranks, implementation=way
        )
        for way in ("factorized", "reconstructed")
    }


def tltorch_kernel(layer: Layer, r: Ranks) -> dict[str, Callable[[], nn.Module]]:
    import tltorch

    def made(way: str) -> nn.Module:
        conv = tltorch.FactorizedConv(
            *layer.sizes, SIDE_OF_KERNEL, order=2, padding=SIDE_OF_KERNEL // 2, bias=True, factorization="tucker",
            rank=(*r.ranks, SIDE_OF_KERNEL, SIDE_OF_KERNEL), implementation=way,
        )  # fmt: skip
        conv.reset_parameters()
        return conv

    return {way: lambda way=way: made(way) for way in ("factorized", "reconstructed")}


def tensorly_torch(layer: Layer, format: str, r: Ranks) -> dict[str, Callable[[], nn.Module]]:
    """By implementation; empty where there is none of this format."""
    if layer.side:
        return tltorch_kernel(layer, r) if format == "tucker" else {}
    if format.startswith("mpo"):
        return tltorch_matrix(layer, "blocktt", [1, *r.ranks, 1], r)
    return tltorch_matrix(layer, "tucker", r.ranks, r) if format == "tucker" else {}


def tednet(layer: Layer, format: str, r: Ranks) -> Callable[[], nn.Module] | None:
    """The layer of this format, or None. Its Tucker of a matrix is another one: three modes, of which one is cut."""
    from tednet.tnn import tensor_ring, tensor_train, tucker2

    kernel = (SIDE_OF_KERNEL, 1, SIDE_OF_KERNEL // 2)
    if layer.kind == "Linear" and format.startswith("mpo"):
        return lambda: tensor_train.TTLinear(r.columns, r.rows, r.ranks)
    if layer.kind == "Linear" and format == "ring":  # its ring begins with the columns
        half = len(r.rows)
        return lambda: tensor_ring.TRLinear(r.columns, r.rows, r.ranks[half:] + r.ranks[:half])
    if layer.kind == "Conv2d" and format.startswith("mpo"):
        return lambda: tensor_train.TTConv2D(r.columns, r.rows, r.ranks, *kernel)
    if layer.kind == "Conv2d" and format == "tucker":
        return lambda: tucker2.TK2Conv2D(*layer.sizes, r.ranks[::-1], *kernel)
    if layer.kind == "Conv2d" and format == "ring":  # columns, kernel, rows: ours the other way round
        first, *rest = r.ranks
        return lambda: tensor_ring.TRConv2D(r.columns[::-1], r.rows[::-1], [first, *reversed(rest)], *kernel)
    return None


def variants(layer: Layer, format: str, kept: float) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Every library's layer by name, ``dense`` first, and why others are missing."""
    ours = layer.ours(decomposition(format), kept)
    found = {"dense": layer.dense(), **{f"tnc {name}": module for name, module in ours.items()}}
    missing: dict[str, str] = {}
    ranks = Ranks(ours["auto"].tnc_weight.network)
    wanted: dict[str, Any] = {}
    for library, offers in (("tltorch", tensorly_torch), ("tednet", tednet)):
        try:
            offered = offers(layer, format, ranks)
        except ImportError as error:
            missing[library] = f"does not import: {error}"
            continue
        if not offered:
            missing[library] = "does not offer this format"
        elif isinstance(offered, dict):
            wanted |= {f"{library} {way}": make for way, make in offered.items()}
        else:
            wanted[library] = offered
    for name, make in wanted.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # tednet prints as it builds
                found[name] = make()
        except Exception as error:  # whatever another library raises is its entry in the table
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def planned_flops(layer: Layer, network: Network, batch: int, training: bool) -> int | None:
    """Multiplications and additions of a forward pass by the cheapest plan through the cores; None if there is none."""
    rates = constants(torch.device("cpu"))
    if layer.kind == "Embedding":
        rows = lookup.rows(network, batch, rates)
        return _flops(*(merge for _, merge in rows.groups), rows.last)
    if layer.side:
        conv = convolution.conv(network, convolution.Extent(batch, layer.side**2), rates, training, False)
        maps = layer.positions(batch) * conv.folded * conv.groups
        middle = 2 * maps * prod(conv.channels) * SIDE_OF_KERNEL**2
        return middle + _flops(conv.before, conv.middle, conv.after)
    through, _ = strategies.linear(network, batch, rates, training)
    return None if through is None else _flops(through.plan)


def training_flops(layer: Layer, network: Network, batch: int) -> int | None:
    """Multiplications and additions of both passes, by whichever plan needs fewer: through the cores or the weight.

    Recomputation is not counted; for a lookup, which has no dense arithmetic to compare with, None.
    """
    if layer.kind == "Embedding":
        return None
    through = planned_flops(layer, network, batch, True)
    rebuilt = layer.flops(batch) + _flops(contract.recipe(network).plan)
    return 3 * min(rebuilt, *([] if through is None else [through]))


def _flops(*plans: Plan) -> int:
    return sum(2 * w.many * w.m * w.n * w.k for plan in plans for w in plan.work)
