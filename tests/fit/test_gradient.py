"""Gradients by hand against differences and torch's autograd, and what a descent promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tnc.contract import ACTIVATIONS, dense
from tnc.errors import PatternError
from tnc.fit import gradient
from tnc.fit.gradient import SLOPES, descend, gradients
from tnc.fit.linalg import relative_error
from tnc.network import Feed, Network


def stacked(activation: str = "relu", depth: int = 2, side: int = 4) -> Network:
    """Matrix products with an activation between them, the innermost of three cores."""
    network = Network("m0 r0, r0 t0 r1, r1 n0 -> m0 t0 n0", {"m0": side, "t0": 2, "n0": side, "r0": 3, "r1": 2})
    sizes = {"m0": side, "n0": side, "t0": 2, "f0": side, "f1": side}
    for _ in range(depth - 1):
        network = Network("f0 t0 f1, m0 f0, f1 n0 -> m0 t0 n0", sizes, Feed(network, activation))
    return network


def gated(sites: int) -> Network:
    """Gates on neighbours of one large fed tensor: contracted in place, by broadcast matrices."""
    outer, fed = [f"m{k}" for k in range(sites)], [f"f{k}" for k in range(sites)]
    inner = Network(f"{' '.join(outer)} -> {' '.join(outer)}", dict.fromkeys(outer, 2))
    gates = [f"m{k} m{k + 1} f{k} f{k + 1}" for k in range(0, sites - 1, 2)]
    last = [] if sites % 2 == 0 else [f"m{sites - 1} f{sites - 1}"]
    pattern = f"{', '.join([' '.join(fed), *gates, *last])} -> {' '.join(outer)}"
    return Network(pattern, dict.fromkeys([*outer, *fed], 2), Feed(inner, "tanh"))


def cores_of(network: Network, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in network.core_shapes]


NETWORKS = [stacked(name, depth) for name in ACTIVATIONS for depth in (1, 2, 4)] + [gated(5), gated(12), gated(13)]


def test_every_activation_has_a_slope():
    assert SLOPES.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("kept", [True, False], ids=["one tape", "run twice"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.shape}-{n.feed.activation if n.feed else ''}")
def test_against_autograd(network, kept, monkeypatch):
    monkeypatch.setattr(gradient, "_TAPE", 1 << 60 if kept else 0)
    cores, weight = cores_of(network), np.random.default_rng(9).normal(size=network.shape)
    found = gradients(network, cores, lambda whole: 2 * (whole - weight))
    leaves = [torch.from_numpy(core).requires_grad_() for core in cores]
    (dense(network, leaves) - torch.from_numpy(weight)).square().sum().backward()
    for core, leaf in zip(found, leaves, strict=True):
        np.testing.assert_allclose(core, leaf.grad.numpy(), rtol=1e-9, atol=1e-9 * np.abs(core).max())


def test_against_differences(place):
    network = stacked("tanh", 3)
    cores, direction = cores_of(network), cores_of(network, 1)
    weight = np.random.default_rng(9).normal(size=network.shape)

    def loss(step: float) -> float:
        moved = [core + step * toward for core, toward in zip(cores, direction, strict=True)]
        return float(np.sum((dense(network, moved) - weight) ** 2))

    target = place.from_numpy(weight)
    found = gradients(network, [place.from_numpy(core) for core in cores], lambda whole: 2 * (whole - target))
    slope = sum(float(np.sum(place.to_numpy(g) * d)) for g, d in zip(found, direction, strict=True))
    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-6)


def test_an_activation_without_a_slope(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "square", lambda x, xp: x * x)
    network = stacked("square")
    with pytest.raises(PatternError, match="square"):
        gradients(network, cores_of(network), lambda whole: whole)


def test_descent_finds_what_was_planted_and_its_scale():
    network = stacked("tanh", 2)
    planted = cores_of(network)
    weight = -300.0 * dense(network, planted)
    near = [core + 0.02 * noise for core, noise in zip(planted, cores_of(network, 1), strict=True)]
    found = descend(weight, network, near, steps=600, rate=1e-2)
    assert relative_error(weight, dense(network, near)) > 0.9
    assert relative_error(weight, dense(network, found)) < 1e-2


def test_descent_keeps_the_best_and_reports():
    network, seen = stacked("relu", 3), []
    weight = np.random.default_rng(2).normal(size=network.shape)
    found = descend(weight, network, cores_of(network), steps=30, rate=0.5, progress=lambda *state: seen.append(state))
    assert [state[:2] for state in seen] == [(k + 1, 30) for k in range(30)]
    assert relative_error(weight, dense(network, found)) == pytest.approx(seen[-1][2], abs=1e-9)


def test_descent_stops_where_it_stands_still():
    network, seen = stacked("tanh", 2), []
    planted = cores_of(network)
    weight = dense(network, planted)
    descend(weight, network, planted, steps=1000, progress=lambda step, steps, error: seen.append(step))
    assert len(seen) == 1
    noise = np.random.default_rng(2).normal(size=network.shape)
    descend(noise, network, planted, steps=1000, tolerance=0.9, progress=lambda step, steps, error: seen.append(step))
    assert seen[-1] < 600


@pytest.mark.parametrize("dead", ["weight", "cores", "overflow"])
def test_descent_survives(dead):
    network = stacked("relu", 2)
    weight, cores = np.random.default_rng(2).normal(size=network.shape), cores_of(network)
    if dead == "weight":
        weight = 0 * weight
    if dead == "cores":
        cores = [0 * core for core in cores]
    if dead == "overflow":
        cores = [1e200 * core for core in cores]
    with np.errstate(all="ignore"):
        found = descend(weight, network, cores, steps=3)
        assert all(np.isfinite(core).all() for core in found)
    if dead != "overflow":
        assert np.abs(dense(network, found)).max() == 0
