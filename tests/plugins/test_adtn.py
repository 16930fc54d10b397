"""ADTN: published counts, the brick wall against an independent one, exact and gradient fits, padding."""

from __future__ import annotations

from math import ceil, log, prod

import numpy as np
import pytest

import tnc
from tnc import Decomposition
from tnc.contract import dense, rebuilds, recipe
from tnc.contract.inputs import apply_plan
from tnc.errors import RankError, WeightError
from tnc.fit.gradient import descend
from tnc.fit.linalg import relative_error
from tnc.testing import assert_conforms
from tnc_plugins.adtn import ADTN
from tnc_plugins.brickwall import first, train
from tnc_plugins.gates import start, widen

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "tanh": np.tanh,
}


def brick_wall(layers, sites: int, dimension: int, activation: str) -> np.ndarray:
    """Gate after gate on e_0, each (d^2, d^2): column of even sites, column of odd sites, activation, and so on."""
    x = np.zeros(dimension**sites)
    x[0] = 1.0
    for depth, gates in enumerate(layers):
        x = x if depth == 0 else ACTIVATIONS[activation](x)
        for site, gate in zip([*range(0, sites - 1, 2), *range(1, sites - 1, 2)], gates, strict=True):
            x = np.einsum("ij,ajb->aib", gate, x.reshape(dimension**site, dimension**2, -1)).reshape(-1)
    return x


def gates_of(cores, sites: int, dimension: int) -> list[list[np.ndarray]]:
    """Cores as square gates, layer by layer, sites in order; what the constant vectors never reach is zero."""
    layers = []
    for k in range(0, len(cores), sites - 1):
        own = list(cores[k : k + sites - 1])
        if sites % 2:  # the neighbour of the last gate comes first
            own.insert(sites // 2 - 1, own.pop(0))
        found = []
        for core in own:
            matrix = np.asarray(core).reshape(dimension**2, -1)
            found.append(np.pad(matrix, ((0, 0), (0, dimension**2 - matrix.shape[1]))))
        layers.append(found)
    return layers


def spectral(side: int, power: float) -> np.ndarray:
    random = np.random.default_rng(1)
    left, right = (np.linalg.qr(random.normal(size=(side, side)))[0] for _ in range(2))
    return left * np.arange(1, side + 1) ** -power @ right


# ------------------------------------------------------------------ structure


def test_the_published_424_parameters():
    counts = [ADTN().network(shape, 1).n_params for shape in ((4096, 512), (4096, 4096))]
    assert counts == [200, 224]
    assert sum(counts) == 424


@pytest.mark.pairwise("a count is a product of what each of them gives")
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("shape", [(2, 2), (8, 4), (16, 16), (4, 4, 3, 3), (8, 16, 1, 1), (2, 4, 40)])
def test_counts(shape, depth, dimension):
    network = ADTN(depth=depth, dimension=dimension).network(shape, 1)
    sites = sum(ceil(log(n, dimension) - 1e-9) for n in shape)
    assert prod(network.shape) == dimension**sites
    column, full = dimension**2 * (sites // 2), dimension**4
    assert network.n_params == column + full * ((sites - 1) // 2) + full * (sites - 1) * (depth - 1)
    assert network.clipped() == network
    assert tnc.Network.from_json(network.to_json()) == network


@pytest.mark.pairwise("shape, depth, dimension and activation enter at different places")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4), (8, 16), (16, 8, 2, 2)])
def test_equals_the_brick_wall(shape, depth, dimension, activation):
    network = ADTN(depth=depth, activation=activation, dimension=dimension).network(shape, 1)
    sites = sum(map(len, network.axes))
    cores = start(network, noise=0.5)
    expected = brick_wall(gates_of(cores, sites, dimension), sites, dimension, activation).reshape(network.shape)
    np.testing.assert_allclose(dense(network, cores), expected, atol=1e-12 * np.abs(expected).max())


def test_equals_the_brick_wall_where_gates_are_merged(place):
    network = ADTN(depth=2).network((256, 128), 1)  # large enough for a sweep of merged blocks
    cores = start(network, noise=0.3)
    expected = brick_wall(gates_of(cores, 15, 2), 15, 2, "relu").reshape(network.shape)
    rebuilt = dense(network, [place.from_numpy(core) for core in cores])
    np.testing.assert_allclose(place.to_numpy(rebuilt), expected, atol=1e-12 * np.abs(expected).max())


def test_depth_one_is_a_train_of_matrix_rank_four():
    network = ADTN().network((64, 64), 1)
    assert np.linalg.matrix_rank(dense(network, start(network, noise=1.0))) <= 4
    deeper = ADTN(depth=2).network((64, 64), 1)
    assert np.linalg.matrix_rank(dense(deeper, start(deeper, noise=1.0))) > 4


@pytest.mark.parametrize("field", [{"depth": 0}, {"dimension": 1}, {"steps": 0}, {"activation": "step"}])
def test_impossible_fields(field):
    with pytest.raises(WeightError, match="adtn"):
        ADTN(**field)


@pytest.mark.parametrize("rank", [0, -1, 1.5, (2, 3)])
def test_impossible_ranks(rank):
    with pytest.raises(RankError, match="depth"):
        ADTN().network((8, 8), rank)


def test_one_site_is_too_few():
    with pytest.raises(WeightError, match="two sites"):
        ADTN(dimension=4).network((4, 1), 1)


# ----------------------------------------------------------------------- fits


@pytest.mark.parametrize("spec", ["adtn", "adtn(dimension=3)"])
def test_conforms(spec):
    assert_conforms(spec, recovers=1e-6)


def test_conforms_on_torch():
    assert_conforms("adtn", "torch", recovers=1e-6, shapes=[(12, 18)])
    assert_conforms("adtn(depth=2, steps=30)", "torch", recovers=None, shapes=[(12, 18)])


@pytest.mark.parametrize("spec", ["adtn(depth=3, steps=40)", "adtn(depth=None, steps=80)"])
def test_deep_ones_conform(spec):
    assert_conforms(spec, recovers=None)


@pytest.mark.parametrize("shape", [(16, 16), (16, 8), (8, 4, 2, 2)])
def test_depth_one_recovers_a_train_of_rank_two(place, shape, rng):
    made = ADTN()
    network = made.network(shape, 1)
    line = train(first(network))
    planted = place.from_numpy(dense(line, [rng.normal(size=size) for size in line.core_shapes]))
    cores = made.fit(planted, network)
    assert relative_error(planted, dense(network, cores)) < 1e-12


def test_depth_one_is_as_good_as_the_train():
    weight = spectral(64, 1.0)
    cores = ADTN().fit(weight, network := ADTN().network(weight.shape, 1))
    assert relative_error(weight, dense(network, cores)) < 0.87  # the sequential SVD reaches 0.884, 0.86 its sweeps


@pytest.mark.parametrize("depth", [2, 4])
def test_depth_helps(depth):
    weight = spectral(32, 1.0)
    shallow, deep = ADTN(), ADTN(depth=depth, steps=300)
    errors = []
    for made in (shallow, deep):
        network = made.network(weight.shape, 1)
        errors.append(relative_error(weight, dense(network, made.fit(weight, network))))
    assert errors[1] < 0.9 * errors[0]


def test_deep_fits_are_never_worse_than_depth_one(rng):
    line = train(first(ADTN().network((16, 16), 1)))
    planted = dense(line, [rng.normal(size=size) for size in line.core_shapes])
    for activation in ACTIVATIONS:
        made = ADTN(depth=3, activation=activation, steps=5)
        network = made.network(planted.shape, 1)
        assert relative_error(planted, dense(network, made.fit(planted, network))) < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_idle_deep_network_can_learn(activation):
    weight = spectral(16, 1.0)
    line = train(first(ADTN().network(weight.shape, 1)))
    network = ADTN(depth=3, activation=activation).network(weight.shape, 1)
    idle = widen(Decomposition.fit(ADTN(), weight, line), network)
    errors = []
    descend(weight, network, idle, steps=400, progress=lambda step, steps, error: errors.append(error))
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("sites", [4, 9, 16])
@pytest.mark.parametrize("depth", range(1, 17))
def test_never_diverges(depth, sites):
    shape = (2 ** (sites // 2), 2 ** (sites - sites // 2))
    weight = np.random.default_rng(depth).normal(size=shape).astype(np.float32)
    seen = []
    made = ADTN(depth=depth, activation=("relu", "tanh")[depth % 2], steps=15 if sites < 16 else 4)
    network = made.network(shape, 1)
    cores = made.fit(weight, network, progress=lambda step, steps, error: seen.append(error))
    assert all(np.isfinite(core).all() and core.dtype == np.float32 for core in cores)
    assert relative_error(weight, dense(network, cores)) <= 1 + 1e-5
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == (0 if depth == 1 else made.steps)


def test_seeds_decide(place):
    weight = place.from_numpy(spectral(16, 1.0))
    made = ADTN(depth=2, steps=100)
    network = made.network((16, 16), 1)
    fits = [[place.to_numpy(core) for core in made.fit(weight, network, seed=seed)] for seed in (0, 0, 1)]
    assert all(map(np.array_equal, fits[0], fits[1]))
    assert not all(map(np.array_equal, fits[0], fits[2]))
    reference = made.fit(spectral(16, 1.0), network)
    for core, expected in zip(fits[0], reference, strict=True):
        np.testing.assert_allclose(core, expected, atol=1e-6)


# -------------------------------------------------------------------- padding


@pytest.mark.parametrize("shape", [(10, 20), (6, 5, 3, 3), (5, 1)])
@pytest.mark.parametrize("depth", [1, 2])
def test_padding(shape, depth, rng):
    weight = rng.normal(size=shape)
    made = ADTN(depth=depth, steps=30)
    network = made.network(shape, 1)
    assert all(n <= can < 2 * n for n, can in zip(shape, network.shape, strict=True))
    found = tnc.Factorization(network, made.fit(weight, network), shape)
    assert found.dense().shape == shape
    assert found.error(weight) <= 1


def test_padding_does_not_count_in_a_gradient_fit(rng):
    """A tensor that the format holds only because its padding may be anything is fitted as well as one without."""
    network = ADTN(depth=2).network((16, 16), 1)
    whole = dense(network, start(network, seed=5, noise=0.3))
    part = whole[:9, :11]
    made = ADTN(depth=2, steps=400)
    masked = relative_error(part, dense(network, made.fit(part, network), part.shape))
    zeros = np.zeros_like(whole)
    zeros[:9, :11] = part
    filled = relative_error(zeros, dense(network, made.fit(zeros, network)))
    assert masked < 0.8 * filled


# ------------------------------------------------------------------- forward


@pytest.mark.parametrize("shape", [(32, 16), (64, 64), (30, 20)])
def test_shallow_ones_meet_the_input_without_the_weight(place, shape, rng):
    network = ADTN().network(shape, 1)
    assert not rebuilds(network)
    assert rebuilds(ADTN(depth=2).network(shape, 1))
    found = tnc.Factorization(network, [place.from_numpy(core) for core in start(network, noise=1.0)], shape)
    x = rng.normal(size=(3, shape[1]))
    expected = x @ place.to_numpy(found.dense()).T
    np.testing.assert_allclose(place.to_numpy(found.apply(place.from_numpy(x))), expected, atol=1e-12)
    assert apply_plan(network, 1).flops < prod(network.shape)


def test_decoding_never_permutes_or_outgrows_the_weight():
    for depth, passes in ((1, 1), (2, 7)):
        made = recipe(ADTN(depth=depth).network((4096, 4096), 1))
        count = 0
        while made is not None:
            assert made.plan.peak <= 2**24
            assert made.plan.final.order is None
            assert all(work.copied <= 2**15 for work in made.plan.work)
            count += sum(work.many * work.m * work.n >= 2**23 for work in made.plan.work)
            made = made.inner
        assert count == passes


@pytest.mark.parametrize(("shape", "depth"), [((32, 64), 1), ((32, 64), 3), ((10, 84), 2)])
def test_training_starts_from_orthogonal_gates(shape, depth):
    """They spread the norm over the entries of the weight: Gaussian gates put it into few of them."""
    kurtosis = []
    for made in (ADTN.random, Decomposition.random):
        own = []
        for seed in range(20):
            adtn = ADTN(depth=depth)
            network = adtn.network(shape, 2)
            cores = made(adtn, network, shape, seed=seed)
            assert [core.shape for core in cores] == list(network.core_shapes)
            if made is ADTN.random:
                for core in cores:
                    gate = core.reshape(4, -1)
                    assert np.allclose(gate.T @ gate, np.eye(gate.shape[1]))
            weight = dense(network, cores, shape)
            own.append(np.mean(weight**4) / np.mean(weight**2) ** 2)
        kurtosis.append(np.median(own))
    assert kurtosis[0] < kurtosis[1] * (0.9 if depth == 1 else 0.6)
    assert any(np.any(a != b) for a, b in zip(made(adtn, network, shape, seed=1), cores, strict=True))
