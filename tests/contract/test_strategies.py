"""Plans of layers: every way to split a convolution, every way to gather rows, priced."""

from __future__ import annotations

from itertools import product

import pytest

import tnc
from tnc.contract import convolution, cost, dense, lookup, strategies, trees
from tnc.contract.cost import Device, seconds
from tnc.contract.devices import device
from tnc.errors import TncError

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402 - after the check that torch is here

from tnc.backends import get  # noqa: E402
from tnc.nn.runtime.convolve import Route, Window, convolve  # noqa: E402
from tnc.nn.runtime.lookup import look_up  # noqa: E402

RATES = Device()
METHODS = ["mpo", "mpo(order=2)", "tucker", "svd", "tt", "cp", "ring(order=1)", "stt", "btt"]


def made(method, shape, rank):
    network = tnc.decompositions.parse(method).network(shape, rank).clipped()
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(core, dtype=torch.float64, generator=generator) for core in network.core_shapes]
    return network, cores, dense(network, cores, shape)


def gap(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("method", METHODS)
def test_every_split_of_a_convolution_is_exact(method, transposed):
    network, cores, weight = made(method, (12, 20, 3, 3), 4)
    x = torch.randn(2, 12 if transposed else 20, 7, 6, dtype=torch.float64)

    window = Window((2, 1), (1, 1), (1, 1), transposed, (0, 0))
    expected = (F.conv_transpose2d if transposed else F.conv2d)(x, weight, stride=(2, 1), padding=1)
    fixed = [k for k, core in enumerate(network.operands) if {"k0", "k1"} & set(core)]
    others = [k for k in range(len(cores)) if k not in fixed]
    for places in product(range(3), repeat=len(others)):
        parts = [tuple(k for k, p in zip(others, places, strict=True) if p == side) for side in range(3)]
        split = parts[0], tuple(sorted((*fixed, *parts[1]))), parts[2]
        plan = convolution.planned(network, split, convolution.Extent(2, 21, 2), RATES, False, transposed)
        found = convolve(Route(plan, network, (12, 20, 3, 3), window), x, None, cores)
        assert gap(found, expected) < 1e-12, split


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_those_of_the_table(method):
    network, cores, table = made(method, (257, 30), 4)
    numbers = torch.randint(0, 257, (50,))
    for batch in (1, 64, 100_000):
        plan = lookup.rows(network, batch, RATES)
        assert gap(look_up(numbers, *cores, plan=plan, columns=30), table[numbers]) < 1e-12


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_trees_are_there(n):
    """(2n - 3)!! binary trees of n leaves."""
    assert len(trees.all_trees(n)) == [1, 3, 15, 105][n - 2]


def test_cheap_plans_cost_less():
    network = tnc.decompositions["svd"]().network((1024, 1024), 8)
    through, rebuilt = strategies.linear(network, 64, RATES)
    assert through.seconds < rebuilt.seconds and through.plan.flops == 2 * 64 * 8 * 2048
    assert seconds(through.plan, RATES, training=True) > through.seconds


def test_a_depthwise_convolution_comes_out_of_cp():
    network, *_ = made("cp", (64, 64, 3, 3), 16)
    plan = convolution.conv(network, convolution.Extent(8, 196), RATES, False, False)
    assert plan.groups == 16 and plan.channels == (1, 1)


def test_images_beyond_a_piece_cost_what_those_within_do():
    """Maps come from far away, and in fresh memory, only where they are worked on as a whole."""
    network, *_ = made("mpo(order=2)", (256, 256, 3, 3), 4)
    fixed = next(k for k, core in enumerate(network.operands) if "k0" in core)
    split = (), (fixed,), tuple(k for k in range(3) if k != fixed)
    for training in (False, True):
        one, many = (
            convolution.planned(network, split, convolution.Extent(n, 256), RATES, training, False) for n in (1, 1024)
        )
        assert one.folded * one.places * 64 < 2 * cost.piece(RATES)  # 16 channels of four bytes are written
        assert many.seconds == pytest.approx(1024 * one.seconds, 1e-3)


def test_training_pays_for_maps_that_are_made_again():
    network, *_ = made("tucker", (64, 64, 3, 3), 32)
    for split, price in ((((1,), (2,), (0,)), 3.6), (((1,), (0, 2), ()), 2.9)):
        forth, both = (
            convolution.planned(network, split, convolution.Extent(64, 256), RATES, training, False).seconds
            for training in (False, True)
        )
        assert price * forth < both


def test_constants_are_stated_measured_or_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    monkeypatch.delenv("TNC_COST")
    device.cache_clear()
    measured = device(get("numpy"), "this machine")
    assert measured.flops > 1e8 and measured.bytes > 1e7 and measured.call > 0
    device.cache_clear()
    assert device(get("numpy"), "this machine") == measured
    monkeypatch.setenv("TNC_COST", "flops=1e12, call=1e-3")
    device.cache_clear()
    stated = device(get("numpy"), "this machine")
    assert (stated.flops, stated.call, stated.bytes) == (1e12, 1e-3, measured.bytes)
    for wrong in ("flops", "speed=3", "flops=fast"):
        monkeypatch.setenv("TNC_COST", wrong)
        device.cache_clear()
        with pytest.raises(TncError, match="flops, bytes, call, item"):
            device(get("numpy"), "this machine")
    device.cache_clear()
