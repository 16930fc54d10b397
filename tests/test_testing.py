"""The conformance kit passes what conforms and catches, by name, what does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import array_api_strict
import numpy as np
import pytest

import tnc
from tnc import Decomposition, Network
from tnc.errors import RankError, WeightError
from tnc.registry import Plugin, Registry
from tnc.testing import SHAPES, assert_conforms

SMALL = ((12, 18),)


@dataclass(frozen=True)
class Good(Decomposition):
    """A truncated SVD, the base of everything broken below."""

    scale: int = 1

    def network(self, shape, rank):
        if len(shape) != 2:
            raise WeightError("matrices only")
        return Network.of_rank("m r, r n -> m n", {"m": shape[0], "n": shape[1]}, rank)


@dataclass(frozen=True)
class Sum(Decomposition):
    """A canonical decomposition: no tree, so its planted tensor may need several seeds."""

    def network(self, shape, rank):
        if len(shape) != 4:
            raise WeightError("kernels only")
        return Network.of_rank("m r, n r, k r, l r -> m n k l", dict(zip("mnkl", shape, strict=True)), rank)


# ------------------------------------------------------------------ what passes


@pytest.mark.parametrize("kind", [Good, Good(scale=3), Sum], ids=repr)
def test_what_conforms(kind, xp):
    assert_conforms(kind, xp)


def test_decompositions_and_places_may_be_named(place):
    assert_conforms("svd", place, 1e-10, SMALL)
    assert_conforms("mpo(order=2)", "numpy", shapes=SMALL)
    assert_conforms(tnc.decompositions["svd"], shapes=SMALL)
    assert_conforms(tnc.decompositions["tucker"](order=1), array_api_strict, shapes=SMALL)


def test_the_setting_does_not_matter():
    with tnc.use_backend("torch"):
        assert_conforms(Good(), "numpy", shapes=SMALL)


def test_shapes_are_of_all_kinds():
    assert {len(shape) for shape in SHAPES} == {2, 3, 4}
    assert any(shape[0] % 2 and shape[1] % 2 for shape in SHAPES)


# ------------------------------------------------------------------- what fails


class Thawed(Good):
    """Not a frozen dataclass of its own, and unequal to a copy."""

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__


class Bare(Decomposition):
    def network(self, shape, rank):
        return Good().network(shape, rank)


@dataclass
class Melting(Decomposition):
    def network(self, shape, rank):
        return Good().network(shape, rank)


@dataclass(frozen=True)
class Unhashable(Good):
    factors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Impure(Good):
    calls: list[int] = field(default_factory=list, hash=False, compare=False)

    def network(self, shape, rank):
        self.calls.append(1)
        return super().network(shape, min(rank + len(self.calls), 9) if rank else 0)


@dataclass(frozen=True)
class Small(Good):
    def network(self, shape, rank):
        return super().network((shape[0] - 1, *shape[1:]), rank)


@dataclass(frozen=True)
class Flat(Good):
    def network(self, shape, rank):
        return Network.of_rank("m r, r n -> (m n)", {"m": shape[0], "n": shape[1]}, rank)


@dataclass(frozen=True)
class NoNetwork(Good):
    def network(self, shape, rank):
        return super().network(shape, rank).to_dict()


@dataclass(frozen=True)
class AnyRank(Good):
    def network(self, shape, rank):
        return super().network(shape, rank if rank != 0 else 1)


@dataclass(frozen=True)
class OneRank(Good):
    def network(self, shape, rank):
        return super().network(shape, rank if isinstance(rank, int) else 1)


@dataclass(frozen=True)
class Choosy(Good):
    def network(self, shape, rank):
        raise WeightError("never")


class Fits:
    """A fit that spoils the cores of a good one."""

    def fit(self, x, network, *, seed=0, metric=None):
        return self.spoil(x, super().fit(x, network, seed=seed), network)


@dataclass(frozen=True)
class Mutates(Fits, Good):
    def spoil(self, x, cores, network):
        x *= 2
        return cores


@dataclass(frozen=True)
class Transposed(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.T for core in cores]


@dataclass(frozen=True)
class OneMore(Fits, Good):
    def spoil(self, x, cores, network):
        return [*cores, cores[0]]


@dataclass(frozen=True)
class Short(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.astype(np.float32) for core in cores]


@dataclass(frozen=True)
class Long(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.astype(np.float64) for core in cores]


@dataclass(frozen=True)
class Infinite(Fits, Good):
    def spoil(self, x, cores, network):
        return [core / 0.0 if k else core for k, core in enumerate(cores)]


@dataclass(frozen=True)
class NormedBlindly(Fits, Good):
    def spoil(self, x, cores, network):
        return [core / np.linalg.norm(core) * np.linalg.norm(x) ** 0.5 for core in cores]


@dataclass(frozen=True)
class Noisy(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (1 + 1e-9 * np.random.default_rng().standard_normal()) for core in cores]


@dataclass(frozen=True)
class Rising(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (0.99**network.n_params) for core in cores]


@dataclass(frozen=True)
class Coarse(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (1 + 1e-3) for core in cores]


@dataclass(frozen=True)
class Offset(Fits, Good):
    def spoil(self, x, cores, network):
        return [core + 1e-6 for core in cores]


@dataclass(frozen=True)
class Rough(Fits, Good):
    def spoil(self, x, cores, network):
        return [np.round(core, 0) for core in cores] if x.dtype == np.float32 else cores


@dataclass(frozen=True)
class Raises(Fits, Good):
    def spoil(self, x, cores, network):
        raise TypeError("unsupported operand")


@dataclass(frozen=True)
class Refuses(Fits, Good):
    def spoil(self, x, cores, network):
        raise RankError("not today")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (3, "3 is no tnc.Decomposition"),
        (dict, "{} is no tnc.Decomposition"),
        (Bare, "Bare is not a frozen dataclass: decorate it"),
        (Melting, "Melting is not a frozen dataclass"),
        (Thawed, "does not equal, or hash like, its own copy"),
        (Unhashable, "is not hashable: unhashable type: 'list'"),
        (Impure, "is not pure: a second call differs"),
        (Small, "rebuilds (11, 18), which cannot hold (12, 18)"),
        (Flat, "which cannot hold (12, 18)"),
        (NoNetwork, "no tnc.Network"),
        (AnyRank, "anyrank.network((12, 18), 0) raises no RankError"),
        (OneRank, "is not that of a rank for each of ('r',)"),
        (Choosy, "choosy refuses every shape of ((12, 18),)"),
        (Mutates, "changes its input"),
        (Transposed, "gives cores of shapes ((1, 12), (18, 1)), not ((12, 1), (1, 18))"),
        (OneMore, "gives cores of shapes"),
        (Short, "gives a core of ('array_api_compat.numpy', dtype('float32'), 'cpu'), not"),
        (Long, "float64'), 'cpu'), not ('array_api_compat.numpy', dtype('float32')"),
        (Infinite, "gives cores that are not finite"),
        (NormedBlindly, "cores that are not finite"),
        (Noisy, "the same seed gives other cores"),
        (Rising, "rise with the ranks [1, 2, 4]"),
        (Coarse, "is recovered to 2.0e-03, not 1.0e-06"),
        (Offset, "a weight of zeros is not rebuilt as zeros"),
        (Rough, "in float32"),
        (Raises, "raises TypeError: unsupported operand"),
        (Refuses, "raises RankError: not today"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_is_broken_is_named(broken, words):
    with pytest.raises(AssertionError) as caught:
        assert_conforms(broken, "numpy", shapes=SMALL)
    assert words in str(caught.value), str(caught.value)


def test_cores_of_another_library():
    torch = pytest.importorskip("torch")

    @dataclass(frozen=True)
    class Host(Good):
        def fit(self, x, network, *, seed=0, metric=None):
            return super().fit(np.asarray(x), network, seed=seed)

    assert_conforms(Host, "numpy", shapes=SMALL)
    with pytest.raises(
        AssertionError, match=r"gives a core of \('array_api_compat.numpy'.*not \('array_api_compat.torch'"
    ):
        assert_conforms(Host, torch, shapes=SMALL)


def test_what_is_not_planted_is_not_asked_for():
    assert_conforms(Coarse, "numpy", recovers=None, shapes=SMALL)
    assert_conforms(Coarse, "numpy", recovers=1e-2, shapes=SMALL)


class Installed(Registry):
    """A registry of one plugin."""

    def __init__(self, name, kind):
        super().__init__("tests", "tnc.decomposition:Decomposition")
        self.plugin, self.kind = Plugin(name, f"{kind.__module__}:{kind.__qualname__}", "here", "1"), kind

    def plugins(self):
        return [self.plugin]

    def _load(self, plugin):
        return self.kind


def test_a_plugin_must_be_called_like_its_class(monkeypatch):
    monkeypatch.setattr("tnc.testing.decompositions", Installed("good", Good))
    assert_conforms(Good, np, shapes=SMALL)
    monkeypatch.setattr("tnc.testing.decompositions", Installed("better", Good))
    with pytest.raises(AssertionError, match="good is registered as 'better': name both alike"):
        assert_conforms(Good, np, shapes=SMALL)


def test_a_plugin_must_come_back_from_its_text(monkeypatch):
    @dataclass(frozen=True)
    class Silent(Good):
        def __str__(self):
            return "silent"

    monkeypatch.setattr("tnc.testing.decompositions", Installed("silent", Silent))
    assert_conforms(Silent(), np, shapes=SMALL)
    with pytest.raises(AssertionError, match=r"parsing 'silent' does not give .*scale=2.* back"):
        assert_conforms(Silent(scale=2), np, shapes=SMALL)
