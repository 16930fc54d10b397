"""Costed plans of convolutions: some cores act on the input, some make the kernel, the rest act on the result.

Each core acts before the convolution, within it or after it, so n cores can be split in 3^n ways. Each split first gets
an estimated price from its convolution and its multiplications. The few splits with the lowest estimates are planned
and priced by `tnc.contract.cost`. Up to `_EXHAUSTIVE` cores, every split is estimated. With more cores, a search starts
from splits in which neighbours act at the same stage. It moves one core or two neighbouring cores at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from itertools import combinations, product
from math import inf, prod
from typing import NamedTuple, TypeAlias

from tnc.contract.cost import Device, convolution, lanes, piece, seconds
from tnc.contract.layout import count
from tnc.contract.order import Indices
from tnc.contract.plans import Plan, plan
from tnc.contract.trees import multiplications, sequential
from tnc.network import Network

__all__ = ["Conv", "Extent", "conv", "planned"]

_SHORTLIST = 3
"""Number of splits that are planned: those with the lowest estimates."""

_EXHAUSTIVE = 6
"""Largest number of cores, beside those of the kernel, for which every split is estimated."""

_BEAM = 8
"""Number of splits from which each round of the search goes on."""

_ITEMSIZE = 4
"""Bytes of an entry: prices are for float32."""

Assignment: TypeAlias = tuple[int, ...]
"""For every core beside those of the kernel: 0 before the convolution, 1 within it, 2 after it."""

Split: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The numbers of the cores that act before, within and after the convolution."""

Work: TypeAlias = Callable[[int, tuple[int, ...]], tuple[int, int]]
"""Multiplications, and entries of the result, of a stage with these cores."""


class Extent(NamedTuple):
    """The size of the images to convolve.

    Attributes
    ----------
    batch : int
        Number of images.
    positions : int
        Number of kernel positions in an image.
    stretch : int
        How many pixels there are for each kernel position. They are in the input, or in the output of a transposed
        convolution.
    """

    batch: int
    positions: int
    stretch: int = 1


class Conv(NamedTuple):
    """A convolution with the cores: some act on the input, some make the kernel, the rest act on the result.

    Attributes
    ----------
    before, middle, after : Plan
        Contract the input with the `early` cores, the `inner` cores with one another to the kernel, and the convolved
        map with the `late` cores.
    early, inner, late : tuple of int
        Numbers of the cores of each plan.
    folded : int
        Channels that the convolution treats as further images of the batch.
    groups : int
        Groups of the convolution in the middle.
    entering : tuple of int
        Sizes of the channel indices of the input.
    unfolded : tuple of int
        Sizes of the channel indices of the convolved map: the folded ones, the groups, the output channels.
    copies : int
        Groups of the layer itself. Each has its own network, and their index is the first index of every core.
    channels : tuple of int
        Channels of the convolution in the middle for each group: output channels, input channels.
    direct : bool
        Whether the convolved map has the channels of the result, in the same order.
    places : int
        Number of kernel positions to work on at a time. A batch of more is divided into pieces.
    seconds : float
        The time of the convolution. It includes the backward pass if it was planned for training.
    """

    before: Plan
    middle: Plan
    after: Plan
    early: tuple[int, ...]
    inner: tuple[int, ...]
    late: tuple[int, ...]
    folded: int
    groups: int
    entering: tuple[int, ...]
    unfolded: tuple[int, ...]
    copies: int
    channels: tuple[int, int]
    direct: bool
    places: int
    seconds: float


class _Problem(NamedTuple):
    """What is to be planned: the arguments of `conv`."""

    network: Network
    extent: Extent
    device: Device
    training: bool
    transposed: bool
    copies: int


class _Term(NamedTuple):
    """The index names of a contraction."""

    operands: tuple[Indices, ...]
    output: Indices


class _Parts(NamedTuple):
    """A split of the cores as three contractions, with a convolution between them.

    The channels of the convolution have the indices `folded` (part of the batch), `groups`, `out` and `into`.
    """

    before: _Term
    middle: _Term
    after: _Term
    folded: Indices
    groups: Indices
    out: Indices
    into: Indices


class _Stage(NamedTuple):
    """A contraction with its sizes, and how many times it runs."""

    times: float
    term: _Term
    sizes: dict[str, int]


class _Stages(NamedTuple):
    """The three contractions of a split, the time of everything else, and `Conv.places`."""

    stages: tuple[_Stage, ...]
    seconds: float
    places: int


@lru_cache(maxsize=4096)
def conv(network: Network, extent: Extent, device: Device, training: bool, transposed: bool, copies: int = 1) -> Conv:
    """The cheapest plan of a convolution.

    Parameters
    ----------
    network : Network
        The network of the weight, whose first two axes are channels. The other axes are the kernel.
    extent : Extent
        The size of the images to convolve.
    device : Device
    training : bool
        Whether the price includes the backward pass.
    transposed : bool
        Whether the first axis of the weight is the input's, as in a transposed convolution.
    copies : int
        Groups of the layer, each with its own network. This is the size of the first index of the first axis. If there
        is more than one, every core has that index.
    """
    problem = _Problem(network, extent, device, training, transposed, copies)
    kernel = {name for axis in network.axes[2:] for name in axis}
    fixed = [k for k, core in enumerate(network.operands) if kernel & set(core)]
    others = [k for k in range(len(network.operands)) if k not in fixed]
    work = _stage_work(problem)

    @cache
    def split(assignment: Assignment) -> Split:
        parts = [tuple(k for k, own in zip(others, assignment, strict=True) if own == stage) for stage in range(3)]
        return parts[0], tuple(sorted((*fixed, *parts[1]))), parts[2]

    @cache
    def price(assignment: Assignment) -> float:
        _, inner, _ = split(assignment)
        if not inner:  # no core has an index of the kernel, but the convolution needs a core
            return inf
        return _estimate(problem, split(assignment), work)

    n = len(others)
    candidates = product(range(3), repeat=n) if n <= _EXHAUSTIVE else _search(n, price)
    ranked = sorted((price(assignment), split(assignment)) for assignment in candidates if split(assignment)[1])
    plans = [_planned(problem, candidate) for _, candidate in ranked[:_SHORTLIST]]
    return min(plans, key=lambda candidate: candidate.seconds)


def channels(network: Network, transposed: bool, copies: int) -> tuple[Indices, Indices]:
    """Channel indices of the input and of the output. The index of the layer's groups belongs to both."""
    first, second = network.axes[:2]
    if copies > 1:
        second = (first[0], *second)
    return (first, second) if transposed else (second, first)


def _names(*parts: Iterable[str]) -> list[str]:
    """All index names of the parts, each once, in order of appearance."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _chosen(names: Iterable[str], chosen: set[str]) -> Indices:
    return tuple(name for name in names if name in chosen)


@lru_cache(maxsize=4096)
def _parts(network: Network, split: Split, transposed: bool, copies: int) -> _Parts:
    """The contractions of a split, and the roles of the channel indices between them."""
    early, inner, late = (tuple(network.operands[k] for k in cores) for cores in split)
    source, target = channels(network, transposed, copies)
    kernel = _names(*network.axes[2:])
    in_kernel = set(_names(*inner))
    needed_after = set(_names(target, *late))
    entering = _chosen(_names(source, *early), needed_after | in_kernel)
    folded = _chosen(entering, needed_after - in_kernel)
    groups = _chosen(entering, needed_after & in_kernel)
    into = _chosen(entering, in_kernel - needed_after)
    out = _chosen(_names(*inner), needed_after - {*entering, *kernel})

    before = _Term((("*", *source, "."), *early), ("*", *folded, *groups, *into, "."))
    weight = (*groups, *into, *out, *kernel) if transposed else (*groups, *out, *into, *kernel)
    after = _Term((("*", *folded, *groups, *out, "."), *late), ("*", *target, "."))
    return _Parts(before, _Term(inner, weight), after, folded, groups, out, into)


def _stages(problem: _Problem, split: Split) -> _Stages:
    """The contractions of a split with their sizes, and the time of everything else.

    The images are convolved piece by piece. The contractions before and after run once for each piece, that of the
    kernel runs once.
    """
    network, extent, device, training, transposed, copies = problem
    parts = _parts(network, split, transposed, copies)
    size = network.sizes
    groups, m, n, folded = (count(names, size) for names in (parts.groups, parts.out, parts.into, parts.folded))
    pixels_in, pixels_out = (1, extent.stretch) if transposed else (extent.stretch, 1)  # for each kernel position
    entries = folded * max(pixels_in * groups * n, pixels_out * lanes(groups * m))
    places = max(1, piece(device) // (_ITEMSIZE * entries))
    batch = min(extent.batch, max(1, places // extent.positions))
    pieces = extent.batch / batch
    pixels_in *= extent.positions
    pixels_out *= extent.positions

    columns = batch * extent.positions * folded
    taps = prod(network.shape[2:])
    total = convolution(groups, m, n, taps, columns, device, training=training)
    _, _, late = split
    if training and late:  # the backward pass of the late cores computes the convolved map again
        total += convolution(groups, m, n, taps, columns, device)
    if not _is_direct(parts):  # the bias is then added in a pass of its own
        total += _ITEMSIZE * batch * pixels_out * network.shape[1 if transposed else 0] / device.bytes

    stages = (
        _Stage(pieces, parts.before, {"*": batch, ".": pixels_in, **size}),
        _Stage(1.0, parts.middle, {"*": batch, ".": 1, **size}),
        _Stage(pieces, parts.after, {"*": batch, ".": pixels_out, **size}),
    )
    return _Stages(stages, total * pieces, places)


def _is_direct(parts: _Parts) -> bool:
    """Whether nothing is to be done after the convolution."""
    return parts.after.operands == (parts.after.output,)


def _stage_work(problem: _Problem) -> Work:
    """A function that tells the work of a stage: multiplications in the better of two orders, entries of the result.

    They depend only on the cores of that stage. They are counted for each pixel, or once for the kernel.
    """
    network = problem.network
    size = {"*": 1, ".": 1, **network.sizes}

    @cache
    def work(stage: int, cores: tuple[int, ...]) -> tuple[int, int]:
        others = tuple(k for k in range(len(network.operands)) if k not in cores)
        split = ((cores, others, ()), ((), cores, others), ((), others, cores))[stage]
        parts = _parts(network, split, problem.transposed, problem.copies)
        operands, output = (parts.before, parts.middle, parts.after)[stage]
        fewest = min(multiplications(operands, output, size, path) for path in sequential(len(operands)))
        return fewest, count(output, size)

    return work


def _estimate(problem: _Problem, split: Split, work: Work) -> float:
    """A lower estimate of a split's price: the convolution, multiplications, results written, and calls."""
    device = problem.device
    stages, total, _ = _stages(problem, split)
    for number, stage in enumerate(stages):
        steps = len(stage.term.operands) - 1
        if steps < 1:
            continue
        is_kernel = number == 1
        pixels = 1 if is_kernel else stage.sizes["*"] * stage.sizes["."]
        products, entries = work(number, split[number])
        arithmetic = 2 * (pixels * products) / device.flops
        moved = _ITEMSIZE * (pixels * entries) / device.bytes
        total += stage.times * (arithmetic + moved + device.call * steps) * (3 if problem.training else 1)
    return total


def _search(n: int, price: Callable[[Assignment], float]) -> set[Assignment]:
    """Good splits of `n` cores: those in which runs of neighbours share a stage, and better ones a few moves away."""
    candidates = set(_runs(n))
    front = _best(candidates, price)
    while True:
        new = {assignment for start in front for assignment in _moves(start)}
        candidates |= new
        better = _best({*front, *new}, price)
        if better == front:
            return candidates
        front = better


def _best(candidates: Iterable[Assignment], price: Callable[[Assignment], float]) -> list[Assignment]:
    """The `_BEAM` cheapest candidates."""
    return sorted(candidates, key=lambda assignment: (price(assignment), assignment))[:_BEAM]


def _runs(n: int) -> Iterator[Assignment]:
    """All splits of `n` cores into at most three runs of neighbours that share a stage."""
    for first, second in combinations(range(n + 1), 2):
        for run_stages in product(range(3), repeat=3):
            yield tuple(run_stages[(k >= first) + (k >= second)] for k in range(n))


def _moves(assignment: Assignment) -> Iterator[Assignment]:
    """The same split with one core, or two neighbouring cores, at any other stage."""
    for k in range(len(assignment)):
        for width in (1, 2):
            for changed in product(range(3), repeat=min(width, len(assignment) - k)):
                yield (*assignment[:k], *changed, *assignment[k + width :])


def planned(
    network: Network, split: Split, extent: Extent, device: Device, training: bool, transposed: bool, copies: int = 1
) -> Conv:
    """The plans of one split of the cores, and their price.

    Parameters
    ----------
    network : Network
        The network of the weight, whose first two axes are channels. The other axes are the kernel.
    split : (tuple of int, tuple of int, tuple of int)
        Numbers of the cores that act before, within and after the convolution.
    extent : Extent
        The size of the images to convolve.
    device : Device
    training : bool
        Whether the price includes the backward pass.
    transposed : bool
        Whether the first axis of the weight is the input's, as in a transposed convolution.
    copies : int
        Groups of the layer, each with its own network (see `conv`).
    """
    return _planned(_Problem(network, extent, device, training, transposed, copies), split)


def _planned(problem: _Problem, split: Split) -> Conv:
    network, _, device, training, transposed, copies = problem
    stages, total, places = _stages(problem, split)
    plans = []
    for times, (operands, output), size in stages:
        used = {name for core in (*operands, output) for name in core}
        stage_plan = plan(operands, output, tuple((name, n) for name, n in size.items() if name in used))
        plans.append(stage_plan)
        total += times * seconds(stage_plan, device, training=training)
    before, middle, after = plans
    if training:  # the backward pass of the convolution computes its input again
        total += stages[0].times * seconds(before, device)

    parts = _parts(network, split, transposed, copies)
    sizes = network.sizes
    folded, groups, out, into = (count(names, sizes) for names in (parts.folded, parts.groups, parts.out, parts.into))
    unfolded = tuple(sizes[name] for name in (*parts.folded, *parts.groups, *parts.out))
    entering = tuple(sizes[name] for name in channels(network, transposed, copies)[0])
    direct = folded == 1 and _is_direct(parts)
    return Conv(
        before, middle, after, *split, folded, groups, entering, unfolded, copies, (out, into), direct, places, total
    )
