"""The interface of a plugin, its rich defaults, and the value a fit gives."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import numpy as np
import pytest

import tnc
from tnc import Decomposition, Factorization, Network
from tnc.errors import WeightError


@dataclass(frozen=True)
class Matrix(Decomposition):
    """A product of two matrices, with options to print."""

    order: int = 2
    rows: tuple[int, ...] | None = None
    kind: str = "plain"

    def network(self, shape, rank):
        return Network.of_rank("m r, r n -> m n", {"m": shape[0], "n": shape[1]}, rank)


@dataclass(frozen=True)
class Sum(Decomposition):
    """A canonical decomposition: no tree."""

    def network(self, shape, rank):
        return Network.of_rank("m r, n r, k r -> m n k", dict(zip("mnk", shape, strict=True)), rank)


NETWORK = Network("m r, r n -> m n", {"m": 6, "r": 2, "n": 8})


def test_one_method_is_abstract():
    assert Decomposition.__abstractmethods__ == {"network"}
    with pytest.raises(TypeError):
        Decomposition()


def test_a_tree_is_fitted_by_svd(place, rng):
    x = rng.standard_normal((6, 8))
    cores = Matrix().fit(place.from_numpy(x), NETWORK)
    best = np.sqrt((np.linalg.svd(x, compute_uv=False)[2:] ** 2).sum()) / np.linalg.norm(x)
    assert Factorization(NETWORK, cores, (6, 8)).error(place.from_numpy(x)) == pytest.approx(best, rel=1e-10)


def test_anything_else_is_fitted_by_least_squares(place, rng):
    network = Sum().network((4, 5, 6), 2)
    x = np.einsum("ir,jr,kr->ijk", *(rng.standard_normal((n, 2)) for n in (4, 5, 6)))
    cores = Sum().fit(place.from_numpy(x), network)
    assert Factorization(network, cores, x.shape).error(place.from_numpy(x)) < 1e-4


def test_cores_are_balanced(place, rng):
    x = 1e6 * rng.standard_normal((6, 8))
    norms = [np.linalg.norm(place.to_numpy(core)) for core in Matrix().fit(place.from_numpy(x), NETWORK)]
    assert norms[0] == pytest.approx(norms[1])


def test_a_metric_is_one_for_the_shape_of_the_weight():
    with pytest.raises(WeightError, match=r"metric of shape \(7, 7\) .* is not one for a weight of shape \(6, 8\)"):
        Matrix().fit(np.ones((6, 8)), NETWORK, metric=np.eye(7))
    assert len(Matrix().fit(np.ones((6, 8)), NETWORK, metric=np.eye(8))) == len(NETWORK.operands)


def test_ranks_come_in_steps_of_one():
    assert Matrix().step == 1


def test_text_shows_what_differs_from_the_defaults():
    assert str(Matrix()) == "matrix"
    assert str(Matrix(order=3)) == "matrix(order=3)"
    assert str(Matrix(kind="it's", rows=(2, 3))) == 'matrix(rows=(2, 3), kind="it\'s")'


def test_text_shows_fields_without_a_default():
    @dataclass(frozen=True)
    class Kronecker(Matrix):
        shape: tuple[int, int] = field(kw_only=True)

    assert str(Kronecker(shape=(2, 3))) == "kronecker(shape=(2, 3))"


def test_lists_are_tuples_and_equal_and_hash_like_them():
    @dataclass(frozen=True)
    class Checked(Matrix):
        groups: tuple[tuple[int, ...], ...] = ()

        def __post_init__(self):
            assert isinstance(self.rows, tuple)

    listed, tupled = Checked(rows=[2, 3], groups=[[1], [2, 4]]), Checked(rows=(2, 3), groups=((1,), (2, 4)))
    assert listed == tupled and hash(listed) == hash(tupled) and str(listed) == str(tupled)
    assert Checked(**json.loads(json.dumps(asdict(tupled)))) == tupled
    assert replace(tupled, rows=[2, 3]) == tupled
    assert Matrix(rows=[2, 3]) == Matrix(rows=(2, 3)) and hash(Matrix(rows=[2, 3])) == hash(Matrix(rows=(2, 3)))


@pytest.mark.parametrize("text", ["mpo(rows=[4, 4], columns=[2, 8])", "stt(t=[1, 2, 2])", "ring(rows=[4, 4])"])
def test_lists_on_the_command_line(text):
    parsed = tnc.decompositions.parse(text)
    assert parsed == tnc.decompositions.parse(text.replace("[", "(").replace("]", ")"))
    assert tnc.decompositions.parse(str(parsed)) == parsed and parsed in {parsed}
    assert parsed.network((16, 16), 4) == parsed.network((16, 16), 4)


# ------------------------------------------------------------- factorizations


@pytest.fixture
def found(place, rng):
    return Factorization(NETWORK, [place.from_numpy(rng.standard_normal(s)) for s in NETWORK.core_shapes], [5, 8])


def test_factorizations_are_structure_and_numbers(found):
    assert found.shape == (5, 8) and isinstance(found.cores, tuple)
    assert found.n_params == NETWORK.n_params == 2 * (6 + 8)
    assert "m r, r n -> m n" in repr(found) and "28 parameters" in repr(found)
    with pytest.raises(FrozenInstanceError):
        found.shape = (6, 8)


def test_dense_apply_and_error_agree(found, place, rng):
    a, b = map(place.to_numpy, found.cores)
    expected = (a @ b)[:5]
    np.testing.assert_allclose(place.to_numpy(found.dense()), expected)
    x = rng.standard_normal((3, 8))
    np.testing.assert_allclose(place.to_numpy(found.apply(place.from_numpy(x))), x @ expected.T)
    assert found.error(place.from_numpy(expected)) <= 1e-15
    assert found.error(place.from_numpy(2 * expected)) == pytest.approx(0.5)


def test_map_makes_a_new_one(found, place):
    before = [place.to_numpy(core).copy() for core in found.cores]
    double = found.map(lambda core: 2 * core)
    np.testing.assert_allclose(place.to_numpy(double.dense()), 4 * place.to_numpy(found.dense()))
    assert double.network == found.network and double.shape == found.shape
    assert all(np.array_equal(a, place.to_numpy(b)) for a, b in zip(before, found.cores, strict=True))


def test_cores_must_be_those_of_the_network(rng):
    cores = [rng.standard_normal((6, 2)), rng.standard_normal((2, 7))]
    with pytest.raises(
        WeightError, match=r"cores of shapes \(\(6, 2\), \(2, 7\)\) do not fit .*\(\(6, 2\), \(2, 8\)\)"
    ):
        Factorization(NETWORK, cores, (6, 8))
    with pytest.raises(WeightError, match="do not fit"):
        Factorization(NETWORK, cores[:1], (6, 8))


@pytest.mark.parametrize("shape", [(7, 8), (6, 9), (48,), (6, 8, 1)], ids=str)
def test_the_shape_must_fit_into_the_network(shape, rng):
    cores = [rng.standard_normal(s) for s in NETWORK.core_shapes]
    with pytest.raises(WeightError, match="cannot hold a weight of shape"):
        Factorization(NETWORK, cores, shape)
