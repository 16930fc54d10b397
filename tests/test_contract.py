"""Contractions against numpy.einsum: rebuilding, applying, padding, on every array library."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.contract import ACTIVATIONS, activate, apply, contract, crop, dense, pad, plan
from tnc.errors import PatternError
from tnc.network import Feed, Network

NETWORKS = {
    "one core": Network("m0 n0 -> m0 n0", {"m0": 4, "n0": 6}),
    "svd": Network("m0 r0, r0 n0 -> m0 n0", {"m0": 4, "n0": 6, "r0": 3}),
    "mpo": Network(
        "m0 n0 r1, r1 m1 n1 r2, r2 m2 n2 -> (m0 m1 m2) (n0 n1 n2)",
        {"m0": 2, "n0": 3, "r1": 4, "m1": 3, "n1": 2, "r2": 2, "m2": 2, "n2": 5},
    ),
    "tucker": Network(
        "m0 r0, n0 r1, r0 r1 k0 k1 -> m0 n0 k0 k1", {"m0": 5, "n0": 4, "r0": 2, "r1": 3, "k0": 3, "k1": 2}
    ),
    "cp": Network("m0 r0, n0 r0, k0 r0, k1 r0 -> m0 n0 k0 k1", {"m0": 4, "n0": 5, "k0": 3, "k1": 3, "r0": 6}),
    "ring": Network(
        "r2 m0 r0, r0 n0 r1, r1 k0 r2 -> m0 n0 k0", {"m0": 4, "n0": 5, "k0": 3} | dict.fromkeys(("r0", "r1", "r2"), 2)
    ),
    "semi-tensor": Network("m0 t0 r0, r0 t1 n0 -> (m0 t0) (n0 t1)", {"m0": 3, "t0": 2, "r0": 2, "t1": 2, "n0": 5}),
    "blocks": Network("b m0 r0, b r0 n0 -> m0 n0", {"b": 3, "m0": 4, "r0": 2, "n0": 5}),
    "shared on the right": Network("s m0 r0, s r0 n0 -> s m0 n0", {"s": 3, "m0": 4, "r0": 2, "n0": 5}),
    "rows last": Network("n0 r0, r0 m0 -> m0 n0", {"m0": 4, "n0": 6, "r0": 3}),
    "mixed axes": Network("n1 m0 r0, r0 m1 n0 -> (m0 m1) (n0 n1)", {"m0": 2, "m1": 3, "n0": 4, "n1": 5, "r0": 2}),
}
each = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def cores_of(network, rng):
    return [rng.standard_normal(shape) for shape in network.core_shapes]


def einsum(network, cores):
    """The definition, by NumPy."""
    letter = {name: k for k, name in enumerate(network.sizes)}
    operands = [
        x for core, names in zip(cores, network.operands, strict=True) for x in (core, [letter[i] for i in names])
    ]
    return np.einsum(*operands, [letter[i] for i in network.outer]).reshape(network.shape)


def close(place, ours, theirs):
    ours = place.to_numpy(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(theirs).max(initial=0.0)))


@each
def test_dense(network, place, rng):
    cores = cores_of(network, rng)
    close(place, dense(network, [place.from_numpy(c) for c in cores]), einsum(network, cores))


@each
def test_dense_cut_to_a_shape(network, place, rng):
    cores, shape = cores_of(network, rng), tuple(max(1, n - 1) for n in network.shape)
    ours = dense(network, [place.from_numpy(c) for c in cores], shape)
    close(place, ours, einsum(network, cores)[tuple(map(slice, shape))])


@each
@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,)], ids=str)
def test_apply(network, lead, place, rng):
    cores = cores_of(network, rng)
    weight = einsum(network, cores)
    x = rng.standard_normal((*lead, weight[0].size))
    ours = apply(network, [place.from_numpy(c) for c in cores], place.from_numpy(x))
    close(place, ours, x @ weight.reshape(len(weight), -1).T)


@each
def test_apply_cut_to_a_shape(network, place, rng):
    cores, shape = cores_of(network, rng), tuple(max(1, n - 1) for n in network.shape)
    weight = einsum(network, cores)[tuple(map(slice, shape))]
    x = rng.standard_normal((3, weight[0].size))
    ours = apply(network, [place.from_numpy(c) for c in cores], place.from_numpy(x), shape)
    close(place, ours, x @ weight.reshape(len(weight), -1).T)


@each
def test_operands_are_only_read(network, place, rng):
    cores = [place.from_numpy(c) for c in cores_of(network, rng)]
    x = place.from_numpy(rng.standard_normal((2, network.n_params))[:, : int(np.prod(network.shape[1:]))].copy())
    before = [place.to_numpy(a).copy() for a in (*cores, x)]
    dense(network, cores), apply(network, cores, x)
    for old, new in zip(before, (*cores, x), strict=True):
        assert np.array_equal(old, place.to_numpy(new))


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh"])
def test_feeds(activation, place, rng):
    first = Network("a b, b c -> a c", {"a": 4, "b": 2, "c": 3})
    second = Network("p r, r c -> p c", {"p": 3, "r": 4, "c": 4}, Feed(first, "relu"))
    third = Network("m q, q n -> m n", {"m": 6, "q": 2, "n": 5}, Feed(second, activation))
    assert third.core_shapes == ((4, 2), (2, 3), (4, 4), (2, 5))
    cores = cores_of(third, rng)
    function = {
        "identity": lambda x: x,
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
        "tanh": np.tanh,
    }[activation]
    inner = np.maximum(cores[0] @ cores[1], 0).reshape(3, 4) @ cores[2]
    expected = function(inner).reshape(6, 2) @ cores[3]
    ours = [place.from_numpy(c) for c in cores]
    close(place, dense(third, ours), expected)
    x = rng.standard_normal((2, 5))
    close(place, apply(third, ours, place.from_numpy(x)), x @ expected.T)
    assert set(ACTIVATIONS) == {"identity", "relu", "leaky_relu", "tanh"}


def test_unknown_activation():
    with pytest.raises(PatternError, match="'swish' is unknown; there are identity, relu"):
        activate("swish", np.ones(2), np)


def test_a_batch_index_stays_in_front(place, rng):
    a, b = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 4, 5))
    ours = contract([("*", "m", "r"), ("*", "r", "n")], ("*", "m", "n"), [place.from_numpy(a), place.from_numpy(b)])
    close(place, ours, a @ b)


def test_many_operands_of_all_kinds(place, rng):
    sizes = {"a": 2, "b": 3, "c": 4, "d": 2, "e": 3}
    operands = [("a", "b"), ("b", "c", "d"), ("d", "e"), ("e", "a", "c"), ("e",), ("c", "b")]
    arrays = [rng.standard_normal([sizes[i] for i in core]) for core in operands]
    expected = np.einsum("ab,bcd,de,eac,e,cb->ec", *arrays)
    close(place, contract(operands, ("e", "c"), [place.from_numpy(x) for x in arrays]), expected)
    scalar = contract(operands, (), [place.from_numpy(x) for x in arrays])
    close(place, scalar, expected.sum())


def test_a_large_operand_with_many_small_ones(place, rng):
    # The planner treats a large tensor in another way: the result must not tell.
    shape = (8, 9, 7, 6, 10)
    x, names = rng.standard_normal(shape), ["i", "j", "k", "l", "o"]
    factors = [rng.standard_normal((n, 3)) for n in shape]
    operands = [tuple(names), *((name, name.upper()) for name in names)]
    ours = contract(operands, ("O", "I", "K", "J", "L"), [place.from_numpy(a) for a in (x, *factors)])
    close(place, ours, np.einsum("ijklo,iI,jJ,kK,lL,oO->OIKJL", x, *factors))


def test_plans_are_made_once_and_hold_at_any_batch(rng):
    network = NETWORKS["mpo"]
    key = (("*", *network.outer[3:]), *network.operands), ("*", "m0", "m1", "m2"), (("*", 8), *network.sizes.items())
    first = plan(*key)
    assert plan(*key) is first and hash(first) == hash(plan(*key))
    assert first.flops >= 2 * 8 * network.shape[0] and first.peak >= 8 * network.shape[0]
    cores = cores_of(network, rng)
    for batch in (5, 8):
        x = rng.standard_normal((batch, 30))
        np.testing.assert_allclose(apply(network, cores, x), x @ einsum(network, cores).T)


def test_flops_of_a_plan_are_those_of_its_products():
    made = plan((("m", "r"), ("r", "n")), ("m", "n"), (("m", 3), ("r", 4), ("n", 5)))
    assert made.flops == 2 * 3 * 4 * 5 and made.peak == 15


def test_a_dangling_index_is_refused():
    with pytest.raises(PatternError, match="index 'r' stands in one operand only"):
        plan((("m", "r"), ("n",)), ("m", "n"), (("m", 2), ("r", 2), ("n", 2)))


# -------------------------------------------------------------- pad and crop


def test_pad_then_crop(place, rng):
    x = rng.standard_normal((3, 4))
    mine = place.from_numpy(x)
    wide = pad(mine, (5, 4))
    close(place, wide, np.pad(x, ((0, 2), (0, 0))))
    close(place, crop(wide, (3, 4)), x)
    close(place, pad(mine, (4, 7)), np.pad(x, ((0, 1), (0, 3))))


def test_nothing_is_copied_where_nothing_changes(place, rng):
    x = place.from_numpy(rng.standard_normal((3, 4)))
    assert pad(x, (3, 4)) is x and crop(x, (3, 4)) is x and crop(x, None) is x
