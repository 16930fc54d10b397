"""Any pattern: it prints what it parses, rebuilds and applies what einsum says, and clipping loses nothing."""

from __future__ import annotations

import copy

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tnc.contract import apply, dense
from tnc.fit import balance, refine, tree_svd
from tnc.fit.linalg import relative_error
from tnc.network import Network


@st.composite
def patterns(draw):
    """Cores over random indices: bonds, hyperedges, indices that pass through, and some shared on the right."""
    cores = draw(st.integers(1, 4))
    homes = st.sets(st.integers(0, cores - 1), min_size=1)
    outer = {f"x{k}": ends for k, ends in enumerate(draw(st.lists(homes, min_size=1, max_size=4)))}
    bonds = {f"r{k}": ends for k, ends in enumerate(draw(st.lists(homes, max_size=4))) if len(ends) > 1}
    for k in set(range(cores)) - set().union(*outer.values(), *bonds.values()):
        outer[f"y{k}"] = {k}
    names = draw(st.permutations([*outer, *bonds]))
    operands = [[name for name in names if k in {**outer, **bonds}[name]] for k in range(cores)]
    axes, right = draw(st.permutations(list(outer))), []
    while axes:
        size = draw(st.integers(1, len(axes)))
        right.append(axes[:size])
        axes = axes[size:]
    pattern = ", ".join(map(" ".join, operands)) + " -> " + " ".join(f"({' '.join(axis)})" for axis in right)
    return Network(pattern, {name: draw(st.integers(1, 3)) for name in names})


@st.composite
def trees(draw):
    """Cores in a random tree of bonds, one to three indices on the right each."""
    count = draw(st.integers(1, 5))
    cores = [[f"x{k}_{j}" for j in range(draw(st.integers(0 if k else 1, 2)))] for k in range(count)]
    for k in range(1, count):
        for end in (k, draw(st.integers(0, k - 1))):
            cores[end].append(f"r{k}")
    outer = [name for core in cores for name in core if name[0] == "x"]
    sizes = {name: draw(st.integers(1, 4)) for name in outer} | {
        f"r{k}": draw(st.integers(1, 9)) for k in range(1, count)
    }
    shuffled = [" ".join(draw(st.permutations(core))) for core in cores]
    network = Network(f"{', '.join(shuffled)} -> {' '.join(draw(st.permutations(outer)))}", sizes)
    assert network.is_tree
    return network


seeds = st.integers(0, 2**32 - 1)


def cores_of(network, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in network.core_shapes]


def einsum(network, cores):
    letter = {name: k for k, name in enumerate(network.sizes)}
    pairs = zip(cores, network.operands, strict=True)
    operands = [x for core, names in pairs for x in (core, [letter[i] for i in names])]
    return np.einsum(*operands, [letter[i] for i in network.outer]).reshape(network.shape)


@given(patterns())
def test_patterns_print_what_they_parse(network):
    assert Network(network.pattern, network.sizes) == network
    assert Network.from_json(network.to_json()) == network == copy.deepcopy(network)
    assert hash(Network.from_json(network.to_json())) == hash(network)
    loose = network.pattern.replace(" ", "   ").replace("->", "  ->  ")
    assert Network(loose, dict(reversed(network.sizes.items()))) == network
    assert network.n_params == sum(int(np.prod(shape)) for shape in network.core_shapes)


@given(patterns(), seeds)
def test_dense_is_einsum(network, seed):
    cores = cores_of(network, seed)
    np.testing.assert_allclose(dense(network, cores), einsum(network, cores), rtol=1e-10, atol=1e-10)


@given(patterns(), seeds, st.data())
def test_apply_is_a_product_with_the_cut_weight(network, seed, data):
    cores = cores_of(network, seed)
    shape = tuple(data.draw(st.integers(1, n)) for n in network.shape)
    weight = einsum(network, cores)[tuple(map(slice, shape))]
    np.testing.assert_allclose(dense(network, cores, shape), weight, rtol=1e-10, atol=1e-10)
    x = np.random.default_rng(seed).standard_normal((data.draw(st.integers(0, 4)), weight[0].size))
    y = apply(network, cores, x, shape)
    np.testing.assert_allclose(y, x @ weight.reshape(shape[0], -1).T, rtol=1e-10, atol=1e-10)


@given(patterns())
def test_clipping_only_shrinks_bonds(network):
    clipped = network.clipped()
    assert clipped.clipped() == clipped and clipped.pattern == network.pattern and clipped.shape == network.shape
    assert all(clipped.sizes[name] <= size for name, size in network.sizes.items())
    assert all(clipped.sizes[name] == network.sizes[name] for name in network.outer)


@given(trees(), seeds)
def test_clipping_loses_nothing(network, seed):
    whole = dense(network, cores_of(network, seed))
    clipped = network.clipped()
    cores, _ = tree_svd(whole, clipped)
    assert relative_error(whole, dense(clipped, cores)) <= 1e-10


@given(trees(), seeds)
def test_unlimited_bonds_hold_anything(network, seed):
    full = network.resize(**dict.fromkeys(network.bonds, 1000)).clipped()
    x = np.random.default_rng(seed).standard_normal(full.shape)
    cores, _ = tree_svd(x, full)
    assert relative_error(x, dense(full, cores)) <= 1e-12


@given(trees(), seeds)
def test_sweeps_and_balancing_never_raise_the_error(network, seed):
    x = np.random.default_rng(seed).standard_normal(network.shape)
    cores, root = tree_svd(x, network)
    first = relative_error(x, dense(network, cores))
    better = refine(x, network, cores, root, sweeps=3)
    assert relative_error(x, dense(network, better)) <= first + 1e-9
    np.testing.assert_allclose(dense(network, balance(better)), dense(network, better), rtol=1e-8, atol=1e-10)


@given(trees())
def test_the_sides_of_a_bond_are_what_it_parts(network):
    for bond in network.bonds:
        side = set(network.side(bond))
        assert side <= set(network.outer)
        ends = [core for core in network.operands if bond in core]
        assert set(ends[0]) & set(network.outer) <= side and not set(ends[1]) & side
