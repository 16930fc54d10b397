"""Semi-tensor products (Zhao et al., 2021): a trained ResNet-32 in four formats, and wide ResNets in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod

import torch
from torch import nn

from benchmarks.papers.changes import Budgeted, Format, Layers, count, matched, saving, svd
from benchmarks.papers.mpo import CIFAR, build
from benchmarks.papers.study import Method, Study
from benchmarks.papers.train import Data, Recipe, split

__all__ = ["INTRO", "TITLE", "alternatives", "studies"]

TITLE = "Semi-tensor products: ResNet-32 and wide ResNets"
INTRO = """\
Zhao, Liu, Huang and Zhu (2021, {cite}`zhao2021stp`) publish, at 2 % loss of accuracy on CIFAR-10, compression
factors of 3× and 9× for a ResNet in TT and STT form at rank 14, and of 99× and 179× for a wide ResNet in TR and STR
form at rank 16. How they cut the kernels into modes, which cores the ratio t divides, and their initialization
could not be read.

**The tensorisation is our choice**, the one found to agree best with the published factors (alternatives are counted
below; for ResNet-32 no way of counting gives both: 3× is nearest with bonds at their nominal size, 9× with bonds
clipped). Every 3 × 3 convolution but the first is cut into modes: output channels, kernel, input channels. ResNet-32:
16 = 4·2·2, 32 = 4·4·2, 64 = 4·4·4, kernel 9; t = 2 at every bond that meets a channel mode, so that the first core
and the kernel's keep their size. Tucker and STTu take the channels whole, as a core of 14^6 would be larger than the
kernel. WRN-28-10: 160 = 4·8·5, 320 = 8·8·5, 640 = 8·16·5, 16 = 4·4, projections likewise, t = 2 at the even modes and
1 at the modes of size 5. WRN-28-10 is counted; a CPU takes weeks to train it. WRN-16-4 stands for it, cut in the same
way (64 = 4·4·4, 128 = 4·8·4, 256 = 8·8·4): STR against TR at one rank and at one size. A layer for which the format
would be larger than the kernel stays dense; bonds are clipped to what they can use. The first convolution, batch
normalization and the last layer stay as they are.

From-scratch training is out of a CPU's reach: the trained ResNet-32 (92.63 %) is compressed and fine-tuned
("healed") with cross-entropy and the distillation of the dense network. Fits keep the outputs of the layers on 512
training images, those of later layers with the errors of the earlier ones. Beside the paper's rows stand formats of the
size of `stt`. `Budget` divides their ranks over the layers by these outputs, and `auto` chooses the format of each
layer as well. `svd` has the ranks that come from sharing this size equally. `narrow` is freshly initialized: a
convolution with fewer maps and a 1 × 1 convolution behind it. All are healed in the same way. The network
that was given had been trained on all 50,000 images, the validation split included; only the rate is chosen on it.
"""

RANK, WIDE_RANK = 14, 16
RESNET = {16: (4, 2, 2), 32: (4, 4, 2), 64: (4, 4, 4)}
WIDE = {16: (4, 4), 160: (4, 8, 5), 320: (8, 8, 5), 640: (8, 16, 5)}
WIDE_4 = {16: (4, 4), 64: (4, 4, 4), 128: (4, 8, 4), 256: (8, 8, 4)}
BUDGETS = ("tt", "tucker", "cp", "auto")
"""Formats that get the size of the paper's semi-tensor train, with ranks by a budget."""
HEAL = Recipe(epochs=10, batch=128, rates=(1e-3, 5e-3, 2e-2), decay=1e-2, augmented=True, taught=True)

Modes = Mapping[int, tuple[int, ...]]


def kernels(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The convolutions to compress: all but the first."""
    convolutions = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4}
    return dict(list(convolutions.items())[1:])


def formats(model: nn.Module, method: str, modes: Modes, rank: int, *, ratio: int = 0, clip: bool = True) -> Layers:
    """The format of one method for every convolution.

    Parameters
    ----------
    model : torch.nn.Module
    method : str
        Name of the decomposition.
    modes : mapping of int to tuple of int
        How a number of channels is factorized into modes.
    rank : int
    ratio : int
        The parameter t of semi-tensor formats, for modes that are multiples of it; 0 for other formats.
    clip : bool
        Whether bonds are reduced to what can be used.
    """
    return {
        name: Format(f"{method}({_fields(shape, modes, ratio)})", rank, clip) for name, shape in kernels(model).items()
    }


def _fields(shape: tuple[int, ...], modes: Modes, ratio: int) -> str:
    rows, columns = modes[shape[0]], modes[shape[1]]
    text = f"rows={rows}, columns={columns}"
    if not ratio:
        return text
    if all(size % ratio == 0 for size in (*rows, *columns)):
        return f"{text}, t={ratio}"
    bonds = [[ratio if size % ratio == 0 else 1 for size in sizes] for sizes in (rows, columns)]
    kernel = [1] if prod(shape[2:]) > 1 else []
    return f"{text}, t={(*bonds[0], *kernel, *bonds[1])}"


def whole(modes: Modes) -> Modes:
    """Modes for channels that are not factorized."""
    return {size: (size,) for size in modes}


def resnet_layers(model: nn.Module) -> dict[str, Layers]:
    """The four methods at rank 14, for the layers in which they save parameters."""
    made = {
        "tt": formats(model, "tt", RESNET, RANK),
        "stt": formats(model, "stt", RESNET, RANK, ratio=2),
        "tucker": formats(model, "tucker", whole(RESNET), RANK),
        "sttu": formats(model, "sttu", whole(RESNET), RANK, ratio=2),
    }
    return {name: saving(model, layers) for name, layers in made.items()}


def wide_layers(model: nn.Module, modes: Modes = WIDE, *, sized: bool = False) -> dict[str, Layers]:
    """TR and STR at rank 16 for the layers in which they save parameters; if `sized`, also a TR of the size of STR."""

    def of(name: str, rank: int, ratio: int = 0) -> Layers:
        return saving(model, formats(model, name, modes, rank, ratio=ratio))

    made = {"ring": of("ring", WIDE_RANK), "str": of("str", WIDE_RANK, 2)}
    if sized:
        allowed = count(model, made["str"])[1]
        fitting = [rank for rank in range(1, WIDE_RANK) if count(model, of("ring", rank))[1] <= allowed]
        made[f"ring, rank {max(fitting)}"] = of("ring", max(fitting))
    return made


def alternatives() -> str:
    """Compression factors of the whole network under other choices, as a table."""
    with torch.device("meta"):
        resnet, wide = build("resnet32"), build("wrn-28-10")
    cut = {16: (4, 4), 32: (8, 4), 64: (8, 8)}
    tens = {16: (4, 4), 160: (4, 4, 10), 320: (4, 8, 10), 640: (8, 8, 10)}
    pairs = {16: (4, 4), 160: (16, 10), 320: (16, 20), 640: (32, 20)}
    cases: list[tuple[str, nn.Module, Modes, int, tuple[str, str]]] = [
        ("ResNet-32: 64 = 4·4·4 (ours)", resnet, RESNET, RANK, ("tt", "stt")),
        ("ResNet-32: 64 = 8·8", resnet, cut, RANK, ("tt", "stt")),
        ("ResNet-32: 64", resnet, whole(RESNET), RANK, ("tt", "stt")),
        ("WRN-28-10: 640 = 8·16·5 (ours)", wide, WIDE, WIDE_RANK, ("ring", "str")),
        ("WRN-28-10: 640 = 8·8·10", wide, tens, WIDE_RANK, ("ring", "str")),
        ("WRN-28-10: 640 = 32·20", wide, pairs, WIDE_RANK, ("ring", "str")),
    ]
    lines = [
        "| modes | TT or TR | STT or STR | the same, not clipped, every layer | |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, model, modes, rank, pair in cases:
        ways = [(name, clip, 2 * (name in ("stt", "str"))) for clip in (True, False) for name in pair]
        factors = [
            _factor(model, formats(model, name, modes, rank, ratio=t, clip=clip), clip) for name, clip, t in ways
        ]
        lines.append(f"| {label} | " + " | ".join(f"{factor:.3g}×" for factor in factors) + " |")
    published = "| published | 3× (TT), 99× (TR) | 9× (STT), 179× (STR) | | |"
    return "\n".join([*lines, published])


def _factor(model: nn.Module, layers: Layers, clip: bool) -> float:
    total = sum(weight.numel() for weight in model.parameters())
    return total / count(model, saving(model, layers) if clip else layers)[1]


def trained_resnet() -> nn.Module:
    """ResNet-32, trained on CIFAR-10; on the meta device, where only shapes matter, it is untrained."""
    if torch.get_default_device().type == "meta":
        return build("resnet32")
    from benchmarks.papers import trained

    return trained.resnet(32, "cifar10")


def load() -> Data:
    """CIFAR-10, standardized as in the training of the network."""
    from benchmarks.papers import data, trained

    return split(data.load("cifar10"), mean=trained.IMAGENET.mean, std=trained.IMAGENET.std)


def compared(
    made: Callable[[], nn.Module],
    start: str,
    layers: Mapping[str, Layers],
    published: Mapping[str, str],
    beside: str,
    budgets: str,
) -> Iterator[Method]:
    """The methods, and controls of the size of `beside`. A glob `budgets` adds formats with a budget."""
    with torch.device("meta"):
        model = made()
    sizes = {name: form.network(model.get_parameter(name).shape).n_params for name, form in layers[beside].items()}
    at = f"{sum(sizes.values()):,}"
    rows = [
        Method(
            name, "paper", made, form, start=start, published={"factor": published[name]} if name in published else {}
        )
        for name, form in layers.items()
    ]
    yield from rows
    if budgets:
        dense = {name: weight.numel() for name, weight in matched(model, budgets).items()}
        size = sum(sizes.get(name, number) for name, number in dense.items())
        for name in BUDGETS:
            budget = Budgeted(budgets, name, size)
            yield Method(f"{name}, budget", "control", made, budget=budget, start=start)
    yield Method(f"svd at {at}", "control", made, svd(model, sizes), start=start)
    yield Method(f"narrow at {at}", "control", made, narrow=sizes, start=start)


def study(
    net: str,
    made: Callable[[], nn.Module],
    chosen: Callable[[nn.Module], dict[str, Layers]],
    published: dict[str, str],
    beside: str,
    *,
    rank: int,
    budgets: str = "",
) -> Study:
    """One network: dense, compressed by every method, and the controls.

    A network that comes trained has a glob `budgets`: the weights whose ranks a budget may choose.
    """
    given = bool(budgets)
    with torch.device("meta"):
        model = made()
    rows: Sequence[Method] = [
        Method("dense", "dense", made, start="dense", trained=not given),
        *compared(made, "calibrated" if given else "fresh", chosen(model), published, beside, budgets),
    ]
    recipe = HEAL if given else CIFAR
    return Study(net, "cifar10", (list(kernels(model)), made), rows, recipe, load, note=f"Rank {rank}.")


def studies() -> list[Study]:
    """ResNet-32, which is healed, and two wide ResNets, of which no trained ones are available: from scratch."""
    resnet = study(
        "resnet32", trained_resnet, resnet_layers, {"tt": "3×", "stt": "9×"}, "stt", rank=RANK, budgets="layer*.weight"
    )
    wide = study(
        "wrn-28-10",
        partial(build, "wrn-28-10"),
        wide_layers,
        {"ring": "99×", "str": "179×"},
        "str",
        rank=WIDE_RANK,
    )
    small = study(
        "wrn-16-4",
        partial(build, "wrn-16-4"),
        partial(wide_layers, modes=WIDE_4, sized=True),
        {},
        "str",
        rank=WIDE_RANK,
    )
    return [resnet, wide, small]
