"""Matrix product operators trained from scratch (Gao et al., 2020): the paper's networks, modes and bonds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.papers import features
from benchmarks.papers.changes import Format, chained, find, svd
from benchmarks.papers.study import Method, Study
from benchmarks.papers.train import Data, Recipe, split

__all__ = ["INTRO", "TITLE", "studies"]

TITLE = "MPO: matrix product operators from scratch"
INTRO = """\
Gao et al. (2020) replace the largest layers of a network by matrix product operators and train from scratch; no
trained weight is approximated. Modes, bonds and networks are the paper's ({cite}`gao2020mpo`), every bond counted
at its nominal size as the paper does. Every row of a table is trained in the same way: `dense` is the network
itself; `svd` has two factors per replaced layer, `narrow` fewer hidden units, each with at most as many parameters
as the MPO beside it (or the fewest that are possible), freshly initialized. Where the replaced layers do not feed
each other the two are one network, and only `svd` stands there.

Accuracy is that of the last step on the 10,000 test images, mean ± sample deviation (number of seeds). Weights are
fitted on nine tenths of the training images; the other tenth is for choices, and the test images are scored once.
The paper reports the *best test accuracy during* 500 epochs, which is not comparable with a last-epoch figure: its
numbers stand here as they are known, those after ≈ from memory, not from its tables.
"""

Modes = tuple[tuple[int, ...], tuple[int, ...], int]
"""Row modes, column modes, bond."""

FC2 = {(256, 784): ((4, 4, 4, 4), (4, 7, 7, 4)), (10, 256): ((1, 10, 1, 1), (4, 4, 4, 4))}
LENET5: dict[tuple[int, int], Modes] = {
    (120, 400): ((2, 5, 6, 2), (2, 10, 10, 2), 4),
    (84, 120): ((2, 3, 7, 2), (2, 5, 6, 2), 4),
    (10, 84): ((1, 5, 2, 1), (2, 3, 7, 2), 2),
}
VGG: dict[tuple[int, int], Modes] = {
    (2048, 2048): ((2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4),
    (4096, 512): ((4, 4, 8, 8, 4), (4, 4, 4, 4, 2), 4),
    (4096, 4096): ((4, 4, 8, 8, 4), (4, 4, 8, 8, 4), 4),
    (10, 4096): ((1, 10, 1, 1, 1), (4, 4, 8, 8, 4), 4),
}
WRN: dict[tuple[int, int], Modes] = {
    (16384, 16384): ((2, 4, 4, 4, 4, 4, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2), 4),
    (10, 256): ((1, 5, 2, 1), (4, 4, 4, 4), 3),
}
DENSENET: dict[tuple[int, int], Modes] = {(10, 448): ((1, 5, 2, 1), (4, 4, 7, 4), 4)}

# Schedules that a CPU can finish; the paper's 500 epochs of plain SGD are out of its reach.
MNIST = Recipe(epochs=30, batch=100, rates=(1e-3, 3e-3, 1e-2))
LENET = Recipe(epochs=20, batch=100, rates=(3e-3, 1e-2, 2e-2))
CIFAR = Recipe(epochs=10, batch=100, rates=(1e-3,), decay=5e-2, augmented=True)
STARTED = """\
All rows start alike: the convolutions that stay dense begin with the weights of a VGG-16-BN trained on CIFAR-10
(92.25 % with its own head), where that has them, and the 1 × 1 convolutions with the middle of its kernels. Replaced
layers begin at random, in the dense network as well. The trained network may have seen the images of our validation
split; nothing is chosen on it here."""


def build(net: str) -> nn.Module:
    """A network of the papers by name."""
    from benchmarks.papers import networks

    return networks.build(net)


def started(fresh: Sequence[str], net: str) -> nn.Module:
    """A VGG whose convolutions have trained weights, except the `fresh` ones. On the meta device it has no values."""
    from benchmarks.papers import trained

    model = build(net)
    return model if next(model.parameters()).is_meta else trained.start_convolutions(model, fresh)


def load(name: str) -> Data:
    """A data set by name, split and standardized by its training images."""
    from benchmarks.papers import data

    return split(data.load(name))


def layers(model: nn.Module, modes: Mapping[tuple[int, int], Modes]) -> dict[str, Format]:
    """The paper's format of every weight of these shapes."""
    return {
        name: Format(f"mpo(rows={rows}, columns={columns})", bond)
        for shape, (rows, columns, bond) in modes.items()
        for name in find(model, shape)
    }


def compared(
    label: str,
    modes: Mapping[tuple[int, int], Modes],
    nets: tuple[str, str],
    replaced: Sequence[str],
    published: Mapping[str, Any],
    make: Callable[[str], nn.Module],
) -> list[Method]:
    """An MPO and its controls.

    Parameters
    ----------
    label : str
        Bonds of the MPO, for its name in the table.
    modes : mapping of shape to Modes
    nets : (str, str)
        Names of the dense network and of the network whose layers become MPOs.
    replaced : sequence of str
        Weights of the dense network that the controls replace, in the order of the MPO's weights.
    published : mapping
        Values from the paper.
    make : callable
        Makes a network from its name.
    """
    with torch.device("meta"):
        dense, mapped = make(nets[0]), make(nets[1])
    formats = layers(mapped, modes)
    sizes = [made.network(mapped.get_parameter(name).shape).n_params for name, made in formats.items()]
    allowed = dict(zip(replaced, sizes, strict=True))
    at = f" at {sum(sizes):,}"
    whole, small = partial(make, nets[0]), partial(make, nets[1])
    made = [
        Method(f"mpo {label}", "paper", small, formats, published=published),
        Method(f"svd{at}", "control", whole, svd(dense, allowed)),
    ]
    return [*made, Method(f"narrow{at}", "control", whole, narrow=allowed)] if chained(dense, allowed) else made


def study(
    net: str,
    data: str,
    groups: Sequence[tuple[str, Mapping[tuple[int, int], Modes], Mapping[str, Any]]],
    recipe: Recipe,
    *,
    replaced: Sequence[tuple[tuple[int, ...], int | None]],
    mapped: str = "",
    dense: str | None = None,
    make: Callable[[str], nn.Module] = build,
    **options: Any,
) -> Study:
    """One network: dense, then every choice of bonds with its controls. `make` makes a network from its name."""
    whole: Callable[[], nn.Module] = partial(make, net)
    with torch.device("meta"):
        names = [name for shape, last in replaced for name in find(whole(), shape, last)]
    methods = [Method("dense", "dense", whole, start="dense", published={"accuracy": dense} if dense else {})]
    for label, modes, published in groups:
        methods += compared(label, modes, (net, mapped or net), names, published, make)
    options.setdefault("load", partial(load, data))
    return Study(net, data, (names, whole), methods, recipe, **options)


def studies() -> list[Study]:
    """All of the paper's networks that are described in full."""
    fc2 = [
        (f"D={bond}", {shape: (*pair, bond) for shape, pair in FC2.items()}, {"parameters": size})
        for bond, size in ((4, 1760), (8, 6720), (16, 26240), (26, 68640))
    ]
    head = [((4096, 512), None), ((4096, 4096), None), ((10, 4096), None)]
    return [
        study("fc2", "mnist", fc2, MNIST, replaced=[(shape, None) for shape in FC2], dense="≈ 98.3"),
        study(
            "lenet5",
            "mnist",
            [("D=4, 4, 2", LENET5, {"parameters": 2860, "accuracy": "99.17 ± 0.08"})],
            LENET,
            replaced=[(shape, None) for shape in LENET5],
            dense="99.17 ± 0.04",
        ),
        *(
            study(
                net,
                "cifar10",
                [("D=4", VGG, {"parameters": 10944, "accuracy": ours})],
                CIFAR,
                replaced=[((512, 512, 3, 3), 2), *head],
                mapped=f"{net}-map",
                dense=dense,
                make=partial(started, fresh),
                load=features.images,
                note=STARTED,
            )
            for net, ours, dense, fresh in (
                ("vgg16", "≈ 93.76 ± 0.16", "≈ 93.13 ± 0.39", ("5_1", "5_2")),
                ("vgg19", "≈ 93.80 ± 0.09", "≈ 93.36 ± 0.26", ("5_3", "5_4")),
            )
        ),
        study(
            "wrn-20-4",
            "cifar10",
            [("D=4, 4, 3", WRN, {"parameters": 3412})],
            CIFAR,
            replaced=[((256, 256, 3, 3), 2), ((10, 256), None)],
            mapped="wrn-20-4-map",
        ),
        study(
            "densenet",
            "cifar10",
            [("D=4", DENSENET, {"parameters": 576})],
            CIFAR,
            replaced=[((10, 448), None)],
        ),
    ]
