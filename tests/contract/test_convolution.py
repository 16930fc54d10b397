"""Plans of networks of many cores: found soon, and as good as those found by trying everything."""

from __future__ import annotations

import pytest

import tnc
from tnc import Network
from tnc.contract import convolution, lookup, strategies
from tnc.contract.cost import Device, seconds
from tnc.contract.plans import plan

RATES = Device()
EXTENTS = [convolution.Extent(1, 49), convolution.Extent(64, 196), convolution.Extent(32, 3136, 4)]
SMALL = [
    *("svd", "cp(order=1)", "cp(order=2)", "tucker", "tucker(order=2)", "tt", "tt(order=2)", "btt", "stt", "sttu"),
    *("mpo(order=2)", "mpo(order=3)", "mpo(order=4)", "mpo(order=5)", "ring(order=1)", "ring(order=2)", "str"),
]
LONG = [("mpo(order=11)", 2048), ("mpo(order=15)", 32768), ("ring(order=6)", 1024), ("tt(order=6)", 1024),
        ("cp(order=6)", 1024), ("tucker(order=6)", 1024), ("str(order=6)", 1024)]  # fmt: skip


def of(method, shape, rank):
    return tnc.decompositions.parse(method).network(shape, rank)


@pytest.mark.parametrize("method", SMALL)
def test_the_search_finds_what_trying_everything_finds(method, monkeypatch):
    """Equal prices, up to six cores: small and large maps, kernels and 1 x 1, in training and not."""
    seen = 0
    for shape in ((64, 64, 3, 3), (256, 64, 3, 3), (16, 256, 1, 1)):
        for rank in (2, 8, 32):
            network = of(method, shape, rank).clipped()
            if not 1 < len(network.operands) <= 6:
                continue
            for extent in EXTENTS:
                for training, transposed in ((False, False), (True, False), (True, True)):
                    prices = []
                    for most in (0, 6):
                        monkeypatch.setattr(convolution, "_EXHAUSTIVE", most)
                        made = convolution.conv.__wrapped__(network, extent, RATES, training, transposed)
                        prices.append(made.seconds)
                    assert prices[0] == prices[1], (network, extent, training, transposed)
                    seen += 1
    assert seen >= 27


@pytest.mark.parametrize(("method", "rank"), [("mpo(order=7)", 4), ("ring(order=3)", 8), ("tt(order=3)", 8)])
def test_the_search_is_as_good_with_more_cores(method, rank, monkeypatch):
    network = of(method, (256, 64, 3, 3), rank).clipped()
    assert len(network.operands) in (7, 8)
    found = convolution.conv.__wrapped__(network, EXTENTS[1], RATES, True, False)
    monkeypatch.setattr(convolution, "_EXHAUSTIVE", 7)
    assert found.seconds == convolution.conv.__wrapped__(network, EXTENTS[1], RATES, True, False).seconds


@pytest.mark.parametrize(("method", "width"), LONG)
def test_many_cores_are_planned_soon(method, width, monkeypatch):
    """Of the 3^n ways to split 12 to 17 cores few get a price, of the trees of a matrix few are planned."""
    network = of(method, (width, width, 3, 3), 4)
    n, estimate, priced = len(network.operands), convolution._estimate, []
    assert n >= 12
    monkeypatch.setattr(convolution, "_estimate", lambda *problem: priced.append(1) or estimate(*problem))
    for cached in (plan, convolution._parts):
        cached.cache_clear()
    convolution.conv.__wrapped__(network, EXTENTS[1], RATES, True, False)
    assert len(priced) < 20 * n**2 < 3**n / 50 and plan.cache_info().misses < 20
    matrix = of(method, (width, width), 4)
    plan.cache_clear()
    strategies.linear.__wrapped__(matrix, 64, RATES, True)
    lookup.rows.__wrapped__(matrix, 64, RATES)
    assert plan.cache_info().misses < 8 * n


def hyperedge(n):
    """A network of n row and n column cores that all share one bond."""
    rows, columns = ([f"{axis}{k}" for k in range(n)] for axis in "mn")
    cores = ", ".join(f"{mode} r" for mode in (*rows, *columns))
    return Network(
        f"{cores} -> ({' '.join(rows)}) ({' '.join(columns)})", dict.fromkeys([*rows, *columns], 2) | {"r": 4}
    )


def complete(n):
    """A network of n cores of which every two share a bond."""
    sizes, cores = {}, []
    for k in range(n):
        names = [f"m{k}", f"n{k}", *(f"r{min(j, k)}x{max(j, k)}" for j in range(n) if j != k)]
        cores.append(" ".join(names))
        sizes |= dict.fromkeys(names, 2)
    axes = " ".join(f"({' '.join(f'{axis}{k}' for k in range(n))})" for axis in "mn")
    return Network(f"{', '.join(cores)} -> {axes}", sizes)


@pytest.mark.parametrize("network", [hyperedge(8), complete(14)], ids=["hyperedge", "complete"])
def test_bonds_of_many_cores_are_planned_soon(network, monkeypatch):
    """Dynamic programming over all sets of cores takes minutes here, so it is not tried."""
    asked = []
    monkeypatch.setattr(strategies, "plan", lambda *args: asked.append(args[3:4]) or plan(*args))
    through, rebuilt = strategies.linear.__wrapped__(network, 64, RATES, True)
    assert through.seconds < rebuilt.seconds and ("dp",) not in asked and 0 < len(asked) < 60


@pytest.mark.parametrize("batch", [1, 64, 4096])
@pytest.mark.parametrize(
    "network",
    [
        *(hyperedge(5), complete(10), of("tucker(order=5)", (1024, 1024), 2), of("tucker(order=5)", (1024, 1024), 3)),
        *(of("cp(order=5)", (1024, 1024), 8), of("mpo(order=11)", (2048, 2048), 4)),
    ],
    ids=["hyperedge", "complete", "tucker2", "tucker3", "cp", "mpo"],
)
def test_trees_of_neighbours_are_as_good_as_all_trees(network, batch):
    """Of eleven operands and more, no dearer than what dynamic programming finds over all sets of them."""
    rows, columns = network.axes
    operands, output, size = (("*", *columns), *network.operands), ("*", *rows), {"*": batch, **network.sizes}
    assert len(operands) > strategies._DP_OPERANDS
    by_all = plan(operands, output, tuple(size.items()), "dp")
    for training in (False, True):
        through, _ = strategies.linear.__wrapped__(network, batch, RATES, training)
        assert through.seconds <= seconds(by_all, RATES, training=training) * (1 + 1e-12)
    for path in strategies.contiguous(operands, output, size):
        assert len(path) == len(operands) - 1
        made = plan(operands, output, tuple(size.items()), "auto", path)
        assert made.flops == 2 * strategies.multiplications(operands, output, size, path)


@pytest.mark.parametrize("cores", ["m0 n0", "m0 r, r n0", "m0 n0, m1 n1"])
def test_a_kernel_of_one_place_that_no_core_has(cores):
    """Some core acts in the convolution all the same: planning failed where it looked cheaper that none did."""
    rows = "(m0 m1) (n0 n1)" if "m1" in cores else "m0 n0"
    sizes = dict.fromkeys(("m0", "n0", "r", "m1", "n1"), 2)
    network = Network(f"{cores} -> {rows} () ()", {i: n for i, n in sizes.items() if i in cores})
    for extent in EXTENTS:
        for training, transposed in ((False, False), (True, False), (True, True)):
            made = convolution.conv.__wrapped__(network, extent, RATES, training, transposed)
            assert made.inner and made.seconds > 0
