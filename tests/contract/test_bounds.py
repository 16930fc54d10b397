"""Small files, large costs: what is nested, long or contracts through too much is refused at once, ours never."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from itertools import combinations
from math import prod

import numpy as np
import pytest

import tnc
from tnc import Checkpoint, Factorization, Network, storage
from tnc.contract import apply, bounds, dense, recipe
from tnc.contract.inputs import apply_plan
from tnc.errors import CheckpointError, PatternError, RankError, WeightError
from tnc.network import MOST_AXES, MOST_CORES, MOST_FEEDS, Feed

SECONDS, BYTES = 0.5, 20e6
"""More than a refusal takes here: less than 50 ms, less than 5 MB."""


def write(path, network, shape=(2, 2), arrays=None):
    weight = {"network": network, "shape": list(shape), "method": "svd"}
    header = {"version": 2, "names": ["w"], "weights": {"w": weight}, "aliases": {}}
    header["report"] = '{"total": 0, "rows": []}'
    storage.write(path, arrays or {}, {"tnc": json.dumps(header)}, frozenset())


def refused(path, words):
    """At once, and without memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(CheckpointError, match=words):
            tnc.load(path)
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def chain(cores, size=1):
    middle = ", ".join(f"r{k} r{k + 1}" for k in range(1, cores - 1))
    return {
        "pattern": f"a r1, {middle}, r{cores - 1} b -> a b",
        "sizes": {"a": 2, "b": 2, **{f"r{k}": size for k in range(1, cores)}},
    }


def nested(depth):
    network = {"pattern": "a b -> a b", "sizes": {"a": 2, "b": 2}}
    for _ in range(depth):
        inner = {"network": network, "activation": "relu"}
        network = {"pattern": "a b, b c -> a c", "sizes": {"a": 2, "b": 2, "c": 2}, "feed": inner}
    return network


def one(indices):
    return {"pattern": f"{' '.join(indices)} -> ({' '.join(indices)})", "sizes": dict.fromkeys(indices, 1)}


HOSTILE = {
    "20,000 indices": (one([f"i{k}" for k in range(20_000)]), (1,), "characters, more than"),
    "5,000 short indices": (one([f"i{k}" for k in range(5_000)]), (1,), "indices in one place, more than 64"),
    "70 axes": (one([f"i{k}" for k in range(70)]), (1,), "70 indices in one place, more than 64"),
    "1,000 cores": (chain(1000), (2, 2), "1,000 cores, more than 64"),
    "300 feeds": (nested(300), (2, 2), "more than 64 networks feed one another"),
    "a size beyond all": (chain(3, 2**63), (2, 2), "more than an array can have"),
    "cores beyond all": (chain(3, 2**62), (2, 2), "has cores of shapes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_network_beyond_bounds(name, tmp_path):
    network, shape, words = HOSTILE[name]
    write(tmp_path / "x", network, shape, {f"w.cores.{k}": np.ones(1) for k in range(3)})
    refused(tmp_path / "x", words)


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000], ids=["lists", "objects"])
def test_text_that_is_nested(text, tmp_path):
    storage.write(tmp_path / "x", {}, {"tnc": text}, frozenset())
    refused(tmp_path / "x", "nested too deep")
    raw = text.encode()
    (tmp_path / "y").write_bytes(len(raw).to_bytes(8, "little") + raw)
    refused(tmp_path / "y", "nested too deep")
    with pytest.raises(PatternError, match="is not a network"):
        Network.from_json(text)
    with pytest.raises(CheckpointError, match="nested too deep"):
        tnc.Report.from_json(text)


def test_text_that_is_nested_where_recursion_has_no_limit(tmp_path):
    """With a limit of a million the parser itself would overrun the stack and bring the process down."""
    text = '{"a\\"[[": ' * 300_000 + '"]]]]"' + "}" * 300_000
    storage.write(tmp_path / "x", {}, {"tnc": text}, frozenset())
    code = "import sys, tnc; sys.setrecursionlimit(10**6)\ntry: tnc.load(sys.argv[1])\nexcept ValueError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert "nested too deep" in done.stdout


def test_a_limit_that_was_raised_refuses_nothing_else(tmp_path):
    network = Network.from_dict(nested(MOST_FEEDS - 1))
    made = Checkpoint({"w[[": Factorization(network, [np.eye(2) for _ in network.core_shapes], (2, 2))})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        made.save(tmp_path / "x")
        assert tnc.load(tmp_path / "x")["w[["].network == network
    finally:
        sys.setrecursionlimit(limit)


def test_a_tensor_of_70_axes(tmp_path):
    layout = json.dumps({"w": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(layout).to_bytes(8, "little") + layout + bytes(4))
    refused(tmp_path / "x", "w has 70 axes, more than 64")


def tangle(size, bonds=11):
    """A 2 x 2 weight of matrices between all pairs of bonds: every order goes through most bonds at once."""
    pairs = list(combinations([f"r{k}" for k in range(bonds)], 2))
    cores = [*pairs, ("m", "r0"), ("r1", "n")]
    sizes = {"m": 2, "n": 2, **{f"r{k}": size for k in range(bonds)}}
    return Network(", ".join(map(" ".join, cores)) + " -> m n", sizes)


def test_a_small_weight_through_a_huge_tensor(tmp_path):
    network = tangle(8)
    arrays = {f"w.cores.{k}": np.ones(shape, np.float32) for k, shape in enumerate(network.core_shapes)}
    write(tmp_path / "x", network.to_dict(), arrays=arrays)
    assert (tmp_path / "x").stat().st_size < 30_000
    refused(tmp_path / "x", "cannot be contracted within 16,777,216 entries")
    with pytest.raises(CheckpointError, match="cannot save"):
        Checkpoint({"w": Factorization(network, list(arrays.values()), (2, 2))}).save(tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_small_weight_cut_from_a_huge_one(tmp_path):
    outer = {"pattern": "a, b -> a b", "sizes": {"a": 2**15, "b": 2**15}}
    arrays = {f"w.cores.{k}": np.ones(2**15, np.float32) for k in range(2)}
    write(tmp_path / "x", outer, arrays=arrays)
    refused(tmp_path / "x", "cannot be contracted within")
    write(tmp_path / "x", outer, (2**14, 2**14), arrays)  # but it may be as large as it says
    assert tnc.load(tmp_path / "x")["w"].shape == (2**14, 2**14)


def test_a_small_weight_through_a_huge_feed(tmp_path):
    inner = Network("a, b -> a b", {"a": 2**15, "b": 2**15})
    outer = Network("q s, q m, s n -> m n", {"q": 2**15, "s": 2**15, "m": 1, "n": 1}, Feed(inner))
    arrays = {f"w.cores.{k}": np.ones(shape, np.float32) for k, shape in enumerate(outer.core_shapes)}
    write(tmp_path / "x", outer.to_dict(), (1, 1), arrays)
    refused(tmp_path / "x", "cannot be contracted within")


KNOTS = [
    ("r1 r5, r2, r0 r1 r2 r3 r4, r0 r5, x0, r0 r2 r3 r4 -> x0", [6, 1, 8, 6, 8, 2, 2], 288),
    ("r0 r1 r3 r4, r0 r1 r2, r0 r3 r4 x1, r1 r2 r5 x0, r2 r3 r4 r5 -> x0 x1", [6, 2, 5, 7, 7, 1, 5, 3], 420),
    ("r3 r4 x0 x1, r0 r1 r2 r3 r5, r0 r3 r4 r5 x2, r5, r0 r1 r2 r4 -> x0 x1 x2", [7, 4, 4, 8, 6, 8, 1, 8, 2], 1344),
]


@pytest.mark.parametrize(("pattern", "sizes", "entries"), KNOTS, ids=lambda value: str(value)[:12])
def test_what_is_accepted_stays_within_the_bound(pattern, sizes, entries, monkeypatch):
    """The fewest operations may take a larger tensor than the order that was checked: then that order is taken."""
    names = dict.fromkeys(pattern.replace("->", " ").replace(",", " ").split())
    network = Network(pattern, dict(zip(names, sizes, strict=True)))
    cores = [np.random.default_rng(k).standard_normal(shape) for k, shape in enumerate(network.core_shapes)]
    caches = recipe, apply_plan, bounds.check
    for cache in caches:
        cache.cache_clear()
    assert recipe(network).plan.peak > entries
    before = dense(network, cores), apply(network, cores, np.ones((4, prod(network.shape[1:]))))
    monkeypatch.setattr(bounds, "allowed", lambda network, shape: entries)
    for cache in caches:
        cache.cache_clear()
    try:
        bounds.check(network, network.shape)
        assert recipe(network).plan.peak <= entries and apply_plan(network, 4).peak <= 4 * entries
        np.testing.assert_allclose(dense(network, cores), before[0], rtol=1e-9)
        after = apply(network, cores, np.ones((4, prod(network.shape[1:]))))
        np.testing.assert_allclose(after, before[1], rtol=1e-9)
        monkeypatch.setattr(bounds, "allowed", lambda network, shape: 2)
        bounds.check.cache_clear()
        with pytest.raises(PatternError, match="cannot be contracted within 2 entries"):
            bounds.check(network, network.shape)
    finally:
        for cache in caches:
            cache.cache_clear()


def test_an_order_that_is_within_the_bound_is_as_right():
    network = tangle(3, 5)
    cores = [np.random.default_rng(k).standard_normal(shape) for k, shape in enumerate(network.core_shapes)]
    letters = {name: k for k, name in enumerate(network.sizes)}
    operands = [
        x for core, names in zip(cores, network.operands, strict=True) for x in (core, [letters[n] for n in names])
    ]
    expected = np.einsum(*operands, [letters[n] for n in network.outer], optimize=True)
    for most in (9, 27, 81, 243):
        path = bounds.path(network.operands, network.outer, network.sizes, most)
        if path is not None:
            made = tnc.contract.plan(network.operands, network.outer, tuple(network.sizes.items()), path=tuple(path))
            assert made.peak <= most
            np.testing.assert_allclose(tnc.contract.run(made, cores), expected, rtol=1e-9)
    assert path is not None
    np.testing.assert_allclose(dense(network, cores), expected, rtol=1e-9)


# ------------------------------------------------- what is made here is never refused

LARGE = [
    *(("adtn(depth=16)", (4096, 4096), 2), ("adtn(depth=64)", (4096, 4096), 2), ("adtn", (50257, 768), 2)),
    *(("mpo(order=12)", (4096, 4096), 8), ("mpo(order=4)", (53248, 16384), 300), ("mpo", (151936, 1024), 64)),
    *(("cp", (512, 512, 3, 3), 2000), ("cp", (64, 64, 64, 64), 60_000), ("cp", (4096, 4096), 2000)),
    *(("ring", (512, 512, 3, 3), 30), ("ring", (4096, 4096), 30), ("tt", (8,) * 8, 900), ("btt", (4096, 4096), 16)),
    *(("tucker", (512, 512, 3, 3), 300), ("svd", (151936, 8192), 4000), ("str", (4096, 4096), 16)),
    *(("stt", (4096, 4096), 16), ("sttu", (4096, 4096), 16), ("tt", (2,) * 20, 9)),
]


@pytest.mark.parametrize(("text", "shape", "rank"), LARGE, ids=str)
def test_large_networks_are_accepted_at_once(text, shape, rank):
    network = tnc.decompositions.parse(text).network(shape, rank).clipped()
    assert Network.from_json(network.to_json()) == network
    start = time.process_time()
    bounds.check(network, shape)
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("rank", [1, 4, 32, 1000, 10**5])
def test_whatever_is_smaller_than_dense_is_accepted(rank):
    tried = 0
    for name in tnc.decompositions:
        for shape in ((4096, 4096), (512, 512, 3, 3), (10, 84), (64, 3, 11, 11), (3, 5), (16,) * 5):
            try:
                network = tnc.decompositions.parse(name).network(shape, rank).clipped()
            except (RankError, WeightError):  # too small for its sites, or no multiple of its step
                continue
            if network.n_params < prod(shape):
                bounds.check(network, shape)
                tried += 1
    assert tried > 1


def test_the_most_that_is_allowed(tmp_path):
    network = Network.from_dict(nested(MOST_FEEDS - 1))
    assert len(network.levels) == MOST_FEEDS and network == Network.from_json(network.to_json())
    cores = [np.eye(2) for _ in network.core_shapes]
    Checkpoint({"w": Factorization(network, cores, (2, 2))}).save(tmp_path / "x")
    assert tnc.load(tmp_path / "x")["w"].dense().tolist() == np.eye(2).tolist()
    with pytest.raises(PatternError, match="more than 64 networks"):
        Network.from_dict(nested(MOST_FEEDS))
    Network(**chain(MOST_CORES))
    with pytest.raises(PatternError, match="65 cores, more than 64"):
        Network(**chain(MOST_CORES + 1))
    Network(**one([f"i{k}" for k in range(MOST_AXES)]))
    with pytest.raises(PatternError, match="65 indices in one place"):
        Network(**one([f"i{k}" for k in range(MOST_AXES + 1)]))


def test_64_axes_of_one_entry_each(tmp_path):
    """As many axes as NumPy has, in a chain of as many cores."""
    cores = [["r1", "x0"], *([f"r{k}", f"x{k}", f"r{k + 1}"] for k in range(1, 63)), ["r63", "x63"]]
    outer = [f"x{k}" for k in range(64)]
    sizes = {f"r{k}": 2 for k in range(1, 64)} | {name: 1 + (k in (0, 63)) for k, name in enumerate(outer)}
    network = Network(", ".join(map(" ".join, cores)) + " -> " + " ".join(outer), sizes)
    arrays = [np.full(shape, 0.5) for shape in network.core_shapes]
    Checkpoint({"w": Factorization(network, arrays, network.shape)}).save(tmp_path / "x")
    found = tnc.load(tmp_path / "x")["w"].dense()
    assert found.shape == network.shape and np.allclose(found, 0.5)
