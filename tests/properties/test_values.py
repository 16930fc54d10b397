"""Any value: factors hold their length, files round like torch, promises hold, text is read back."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import tnc
from tnc import storage
from tnc.errors import PromiseError
from tnc.modes import balanced
from tnc.ranks import Budget, Fixed, Ratio, Tolerance, policy

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.integers(1, 10**6), st.integers(1, 8))
def test_balanced_factors_hold_their_length(length, order):
    factors = balanced(length, order)
    assert len(factors) == order and min(factors) >= 1
    assert length <= prod(factors) <= max(length, 1.05 * length)


@given(arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32)))
def test_bfloat16_rounds_like_torch(x):
    torch = pytest.importorskip("torch")
    bits = torch.from_numpy(x.copy()).bfloat16()
    ours, theirs = storage.widen(storage.bfloat16(x)).reshape(x.shape), bits.float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours[~np.isnan(ours)]), np.signbit(theirs[~np.isnan(theirs)]))


@given(arrays(np.float32, array_shapes(max_dims=2), elements=finite))
def test_bfloat16_twice_is_once(x):
    once = storage.widen(storage.bfloat16(x))
    assert np.array_equal(storage.widen(storage.bfloat16(once)), once)


scalars = st.sampled_from(["float64", "float32", "float16", "int64", "int8", "uint16", "bool", "complex64"])


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.tuples(scalars, array_shapes(min_dims=0, min_side=0)), max_size=4
    )
)
def test_files_keep_what_they_are_given(tmp_path_factory, entries):
    entries.pop("__metadata__", None)
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("files") / "x"
    given_ = {name: (9 * rng.standard_normal(shape)).astype(dtype) for name, (dtype, shape) in entries.items()}
    storage.write(path, given_, {"words": "ключ"}, frozenset())
    found, header, _ = storage.read(path)
    assert header == {"words": "ключ"} and set(found) == set(given_)
    for name, x in given_.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape and np.array_equal(found[name], x)


ratios = st.floats(1e-6, 1.0)


@given(
    st.one_of(
        st.builds(Fixed, st.integers(1, 99)),
        st.builds(Ratio, ratios),
        st.builds(Tolerance, ratios),
        st.builds(Budget, ratios),
    )
)
def test_policies_are_read_back_from_their_text(made):
    assert policy(str(made)) == made


weights = st.builds(
    lambda rows, columns, power, seed: (
        np.random.default_rng(seed).standard_normal((rows, columns)) * (1.0 + np.arange(columns)) ** -power
    ),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0, 3),
    st.integers(0, 9),
)
plugins = st.sampled_from(["svd", "mpo", "mpo(order=2)", "tucker", "tucker(order=1)"])


@settings(max_examples=40)
@given(weights, plugins, st.floats(0.01, 1.0))
def test_ratios_are_never_exceeded(weight, plugin, ratio):
    plugin = tnc.decompositions.parse(plugin)
    try:
        network = Ratio(ratio).choose(weight, plugin)
    except PromiseError:
        assert ratio == 1.0 or plugin.network(weight.shape, 1).clipped().n_params > ratio * weight.size
    else:
        assert network.n_params <= ratio * weight.size and network.holds(weight.shape)


@settings(max_examples=40)
@given(weights, plugins, st.floats(0.01, 1.0), st.sampled_from(["float64", "float32"]))
def test_tolerances_are_never_exceeded(weight, plugin, tolerance, dtype):
    weight = weight.astype(dtype)
    found = tnc.compress_weights({"w": weight}, plugin, rank=Tolerance(tolerance))
    row = found.report.rows[0]
    assert row.error <= tolerance and row.after <= row.before
    for entry in found.factorized.values():
        assert entry.error(weight) <= tolerance


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from("abcd"), weights, min_size=1), plugins, st.floats(0.2, 1.0))
def test_budgets_are_never_exceeded(named, plugin, budget):
    try:
        found = tnc.compress_weights(named, plugin, rank=Budget(budget))
    except tnc.errors.RankError:
        return  # not even the smallest ranks fit, as the message says
    if found.factorized:
        assert found.report.after <= budget * found.report.before


options = st.fixed_dictionaries({}, optional={"order": st.integers(1, 6)}) | st.integers(1, 4).flatmap(
    lambda n: st.fixed_dictionaries({k: st.tuples(*[st.integers(1, 9)] * n) for k in ("rows", "columns")})
)


@given(options)
def test_decompositions_are_read_back_from_their_text(fields):
    made = tnc.decompositions["mpo"](**fields)
    assert tnc.decompositions.parse(str(made)) == made and tnc.Rule.parse(f"*={made}@8").decomposition == made
