"""The conformance kit passes what conforms and catches, by name, what does not."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_strict
import numpy as np
import pytest

import tnc
from tests import broken
from tests.broken import Good
from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.registry import Plugin, Registry
from tnc.testing import SHAPES, assert_conforms

SMALL = ((12, 18),)


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


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (3, "3 is no tnc.Decomposition"),
        (dict, "{} is no tnc.Decomposition"),
        (broken.Bare, "Bare is not a frozen dataclass: decorate it"),
        (broken.Melting, "Melting is not a frozen dataclass"),
        (broken.Thawed, "does not equal, or hash like, its own copy"),
        (broken.Unhashable, "is not hashable: unhashable type: 'dict'"),
        (broken.Impure, "is not pure: a second call differs"),
        (broken.Small, "rebuilds (11, 18), which cannot hold (12, 18)"),
        (broken.Flat, "which cannot hold (12, 18)"),
        (broken.NoNetwork, "no tnc.Network"),
        (broken.AnyRank, "anyrank.network((12, 18), 0) raises no RankError"),
        (broken.OneRank, "is not that of a rank for each of ('r',)"),
        (broken.Choosy, "choosy refuses every shape of ((12, 18),)"),
        (broken.Mutates, "changes its input"),
        (broken.Transposed, "gives cores of shapes ((1, 12), (18, 1)), not ((12, 1), (1, 18))"),
        (broken.OneMore, "gives cores of shapes"),
        (broken.Short, "gives a core of ('array_api_compat.numpy', dtype('float32'), 'cpu'), not"),
        (broken.Long, "float64'), 'cpu'), not ('array_api_compat.numpy', dtype('float32')"),
        (broken.Infinite, "gives cores that are not finite"),
        (broken.NormedBlindly, "cores that are not finite"),
        (broken.Noisy, "the same seed gives other cores"),
        (broken.Rising, "rise with the ranks [1, 2, 4]"),
        (broken.Coarse, "is recovered to 2.0e-03, not 1.0e-06"),
        (broken.Offset, "a weight of zeros is not rebuilt as zeros"),
        (broken.Rough, "in float32"),
        (broken.Raises, "raises TypeError: unsupported operand"),
        (broken.Refuses, "raises RankError: not today"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_is_broken_is_named(kind, words):
    with pytest.raises(AssertionError) as caught:
        assert_conforms(kind, "numpy", shapes=SMALL)
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
    assert_conforms(broken.Coarse, "numpy", recovers=None, shapes=SMALL)
    assert_conforms(broken.Coarse, "numpy", recovers=1e-2, shapes=SMALL)


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
