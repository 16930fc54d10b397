"""Tolerance: never more error than asked, with the fewest parameters, down to the dtype that is stored."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.errors import error_of
from tests.ranked import CP, PLUGINS, Even, plugins, weight_of
from tnc import Factorization, Tolerance, compress_weights
from tnc.errors import PromiseError


@pytest.mark.pairwise("a policy sees errors, not where they come from")
@plugins
@pytest.mark.parametrize("tolerance", [0.5, 0.2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tolerance_is_never_exceeded(plugin, tolerance, dtype):
    weight = (weight_of((24, 30), power=2.0)).astype(dtype)
    try:
        network = Tolerance(tolerance).choose(weight, plugin)
    except PromiseError:
        assert not isinstance(plugin, type(PLUGINS["svd"]) | Even)  # a few singular values are enough
        return
    assert error_of(weight, plugin, network) <= tolerance
    assert network.n_params < weight.size


@pytest.mark.pairwise("a policy sees errors, not where they come from")
@pytest.mark.parametrize("plugin", ["mpo", "tucker", "cp"])
@pytest.mark.parametrize("tolerance", [0.6, 0.4])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_no_equal_ranks_keep_the_tolerance_with_fewer_parameters(plugin, tolerance, power):
    plugin, weight = PLUGINS[plugin], weight_of((24, 30), power=power)
    best = weight.size
    for rank in range(1, 40):
        network = plugin.network(weight.shape, rank).clipped()
        if network.n_params >= weight.size:
            break
        if error_of(weight, plugin, network) <= tolerance:
            best = network.n_params
            break
    try:
        assert Tolerance(tolerance).choose(weight, plugin).n_params <= best
    except PromiseError:
        assert best == weight.size


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tolerance_takes_the_fewest_parameters(tolerance, dtype):
    weight = weight_of((60, 80), power=2.0).astype(dtype)
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
    tails = np.sqrt(1 - np.cumsum(values) / values.sum())
    assert Tolerance(tolerance).choose(weight, PLUGINS["svd"]).ranks == (1 + int(np.argmax(tails <= tolerance)),)


@pytest.mark.parametrize("plugin", ["mpo", "tucker"])
def test_tolerance_finds_a_planted_format(plugin, rng):
    plugin = PLUGINS[plugin]
    network = plugin.network((48, 60), 3)
    weight = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (48, 60)).dense()
    assert Tolerance(1e-6).choose(weight, plugin).n_params <= network.n_params


def test_tolerance_by_search_finds_a_planted_rank(rng):
    network = CP().network((24, 30), 4)
    weight = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (24, 30)).dense()
    assert Tolerance(1e-3).choose(weight, CP()).ranks[0] in (3, 4, 5)


@plugins
def test_tolerance_that_needs_the_dense_weight(plugin, rng):
    with pytest.raises(PromiseError, match=r"as many parameters as the dense weight to reach tolerance:0.01"):
        Tolerance(0.01).choose(rng.standard_normal((24, 30)), plugin)


# ---------------------------------------------------------- after rounding to the stored dtype


@pytest.mark.pairwise("a policy sees errors, not where they come from")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tolerance", [0.3, 0.05])
@pytest.mark.parametrize("plugin", ["svd", "mpo"])
def test_tolerance_holds_after_rounding_to_the_stored_dtype(dtype, tolerance, plugin, tmp_path, rng):
    torch = pytest.importorskip("torch")
    made = PLUGINS[plugin]
    network = made.network((48, 60), 4)
    exact = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (48, 60)).dense()
    exact += 0.02 * np.linalg.norm(exact) / exact.size**0.5 * rng.standard_normal(exact.shape)
    weight = torch.from_numpy(exact).to(getattr(torch, dtype))
    checkpoint = compress_weights({"w": weight}, made, rank=Tolerance(tolerance))
    assert "w" in checkpoint.factorized, checkpoint.report
    assert all(core.dtype == weight.dtype for core in checkpoint["w"].cores)
    checkpoint.save(tmp_path / "w.safetensors")
    for found in (checkpoint["w"].map(lambda c: c.double()), tnc.load(tmp_path / "w.safetensors")["w"]):
        rebuilt = np.asarray(found.map(lambda c: np.asarray(c, np.float64)).dense())
        error = np.linalg.norm(weight.double().numpy() - rebuilt) / np.linalg.norm(weight.double().numpy())
        assert error <= tolerance
        assert checkpoint.report.rows[0].error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ranks_grow_where_rounding_breaks_the_tolerance(dtype, rng):
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(weight_of((48, 60), power=2.0)).to(getattr(torch, dtype))
    svd = PLUGINS["svd"]
    network = svd.network((48, 60), 6)
    tolerance = error_of(weight.float(), svd, network) * (1 + 1e-6)  # kept before rounding, not after
    assert Tolerance(tolerance).choose(weight, svd) == network
    checkpoint = compress_weights({"w": weight}, svd, rank=Tolerance(tolerance))
    assert checkpoint.report.rows[0].ranks == (7,) and checkpoint.report.rows[0].error <= tolerance


def test_a_tolerance_below_the_rounding_stays_dense(rng):
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(rng.standard_normal((48, 2)) @ rng.standard_normal((2, 60))).bfloat16().float().bfloat16()
    checkpoint = compress_weights({"w": weight}, "svd", rank=Tolerance(5e-4))
    row = checkpoint.report.rows[0]
    assert row.method == "dense" and "bfloat16" in row.note and "tolerance:0.0005" in row.note


def test_tolerance_holds_for_bfloat16_files_on_numpy(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from tnc.checkpoint import read_weights

    exact = rng.standard_normal((48, 4)) @ rng.standard_normal((4, 60)) + 0.05 * rng.standard_normal((48, 60))
    weight = torch.from_numpy(exact).bfloat16()
    save_file({"w": weight}, tmp_path / "in.safetensors")
    for tolerance in (0.05, 0.026, 0.0255, 0.025, 0.02):
        checkpoint = compress_weights(read_weights(tmp_path / "in.safetensors"), "svd", rank=Tolerance(tolerance))
        checkpoint.save(tmp_path / "out.safetensors")
        rebuilt = torch.from_numpy(tnc.load(tmp_path / "out.safetensors").weights()["w"]).double()
        assert float((rebuilt - weight.double()).norm() / weight.double().norm()) <= tolerance
