"""Terms that cancel: bounded by every fit, so that cores can be rounded; measured and reported."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest

import tnc
from tnc import Factorization, Network, compress_weights
from tnc.contract import terms
from tnc.fit import random_cores
from tnc.fit.linalg import rounded

FORMATS = ["cp", "cp(order=3)", "btt", "btt(terms=4)", "ring", "ring(order=1)", "str"]
NETWORKS = [
    Network("a r, b r, c r -> a b c", {"a": 3, "b": 4, "c": 2, "r": 3}),
    Network("r a s, s b t, t c r -> a b c", {"a": 3, "b": 4, "c": 2, "r": 2, "s": 3, "t": 2}),
    Network("a b p, b c q, p q d -> a b (c d)", {"a": 2, "b": 3, "c": 2, "d": 2, "p": 3, "q": 2}),
    Network("a t r, r b -> a (b t)", {"a": 4, "b": 3, "t": 2, "r": 3}),
    Network("a b -> a b", {"a": 4, "b": 3}),
    Network("a, b -> a b", {"a": 4, "b": 3}),
]


def norm_of_terms(network, cores):
    """One product of entries for every setting of all indices, summed in plain Python."""
    names, total = list(network.sizes), 0.0
    for setting in itertools.product(*(range(network.sizes[i]) for i in names)):
        at = dict(zip(names, setting, strict=True))
        total += prod(
            float(core[tuple(at[i] for i in held)]) ** 2 for core, held in zip(cores, network.operands, strict=True)
        )
    return total**0.5


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.pattern)
def test_terms_are_counted_one_by_one(network, place):
    cores = random_cores(np.zeros(1), network, 4)
    found = terms(network, [place.from_numpy(core) for core in cores])
    assert found == pytest.approx(norm_of_terms(network, cores), rel=1e-12)
    tiny = terms(network, [place.from_numpy(core * 1e-100) for core in cores])  # squares would vanish
    assert tiny == pytest.approx(found * 1e-100 ** len(cores), rel=1e-12)


def test_orthogonal_terms_have_the_norm_of_the_weight(rng):
    weight, svd = rng.standard_normal((9, 7)), tnc.decompositions["svd"]()
    network = svd.network((9, 7), 7)
    assert Factorization(network, svd.fit(weight, network), (9, 7)).conditioning(weight) == pytest.approx(1.0)


def test_terms_that_cancel_are_many_times_the_weight():
    network = Network("a r, r b -> a b", {"a": 2, "r": 2, "b": 2})
    one = np.ones((2, 1)) * [[1.0, -1.0]]
    other = np.stack([np.full(2, 1e3 + 1), np.full(2, 1e3)])
    found = Factorization(network, [one, other], (2, 2))
    assert found.conditioning(found.dense()) == pytest.approx((1001**2 + 1000**2) ** 0.5)


def test_there_are_no_terms_behind_an_activation(rng):
    weight = rng.standard_normal((16, 16))
    deep, flat = (compress_weights({"w": weight}, f"adtn(depth={n}, steps=5)", rank=2).report.rows[0] for n in (2, 1))
    assert deep.conditioning is None and flat.conditioning is not None
    assert compress_weights({"w": 0 * weight}, "svd", rank=2).report.rows[0].conditioning is None


def test_the_report_says_it_and_older_reports_are_read(rng):
    report = compress_weights({"w": rng.standard_normal((12, 18)), "b": np.eye(2)}, "cp", rank=6).report
    row = report.rows[0]
    assert 0.5 < row.conditioning < 30
    assert tnc.Report.from_json(report.to_json()).rows == report.rows
    old = report.to_json().replace(f', "conditioning": {row.conditioning}', "")
    assert '"conditioning"' not in old.partition("}")[0]
    assert tnc.Report.from_json(old).rows[0].conditioning is None


# ------------------------------------------------------------------- no fit cancels


def weights():
    """Weights whose best or exact fits tempt terms to cancel, of norm one, in float32."""
    rng = np.random.default_rng(0)
    for shape in ((8, 8, 3, 3), (12, 12), (7, 13)):
        legs = [rng.standard_normal((n, 2)) for n in shape]

        def product(which, legs=legs):
            return np.prod(np.ix_(*(leg[:, k] for leg, k in zip(legs, which, strict=True))))

        rank_one = np.ones(())
        for leg in legs:
            rank_one = np.multiply.outer(rank_one, leg[:, 0])
        border = np.zeros(shape)  # of rank 2 in the limit only: de Silva and Lim (2008)
        for j in range(len(shape)):
            term = np.ones(())
            for i, leg in enumerate(legs):
                term = np.multiply.outer(term, leg[:, int(i == j)])
            border += term
        single = np.zeros(shape)
        single[tuple(n // 2 for n in shape)] = 1.0
        for name, w in (
            ("noise", rng.standard_normal(shape)),
            ("single", single),
            ("one", rank_one),
            ("border", border),
            ("constant", np.ones(shape)),
        ):
            yield (name, shape), (w / np.linalg.norm(w)).astype(np.float32)


WEIGHTS = dict(weights())
KINDS, SHAPES = (list(dict.fromkeys(each)) for each in zip(*WEIGHTS, strict=True))


@pytest.mark.pairwise("every format meets every kind of weight and every shape; a ridge knows of neither")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spec", FORMATS)
def test_cores_can_be_rounded_to_bfloat16(spec, shape, kind):
    made, weight = tnc.decompositions.parse(spec), WEIGHTS[kind, shape]
    for rank in (2, 4, 12, 30):
        network = made.network(weight.shape, rank).clipped()
        if network.n_params > 1.5 * weight.size:
            break
        found = Factorization(network, made.fit(weight, network), weight.shape)
        short = found.map(lambda core: rounded(core, 8)).error(weight)
        assert found.conditioning(weight) < 60
        assert short <= 1.06 * found.error(weight) + 0.025


def test_rounding_is_that_of_bfloat16(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(1000) * 10.0 ** rng.integers(-20, 20, 1000)
    for dtype in (np.float32, np.float64):
        short = torch.from_numpy(x.astype(dtype)).bfloat16().to(torch.float64).numpy()
        assert np.array_equal(rounded(x.astype(dtype), 8), short.astype(dtype))


def test_least_squares_of_a_single_entry_in_single_precision():
    # Its normal matrices are singular; the noise of single precision, divided by next to nothing, made an error of 200.
    weight = np.zeros((24, 36), np.float32)
    weight[5, 7] = 2.0
    for spec in FORMATS:
        row = compress_weights({"w": weight}, spec, rank=0.5).report.rows[0]
        assert row.error <= 1e-5 and row.conditioning <= 3, spec
