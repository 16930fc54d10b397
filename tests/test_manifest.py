"""The header is checked, all of it, before anything is used: each wrong value is refused by name."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

import tnc
from tnc import Checkpoint, Factorization, Network, Report, claims, storage
from tnc.contract import ACTIVATIONS
from tnc.errors import CheckpointError
from tnc.network import Feed
from tnc.report import _CHECKS, Row

SVD = Network("m r, r n -> m n", {"m": 6, "r": 2, "n": 8})
FED = Network("m q, q n -> m n", {"m": 3, "q": 2, "n": 8}, Feed(Network("a r, r b -> a b", {"a": 3, "r": 1, "b": 2})))


def factorized(network, shape):
    rng = np.random.default_rng(0)
    return Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], shape)


@pytest.fixture
def file(tmp_path):
    rows = [Row("a", "svd", (5, 8), (2,), 40, 28, 28, 0.1, 0.5, "note"), Row("b", "dense", (4,), error=None)]
    entries = {"a": factorized(SVD, (5, 8)), "b": np.arange(4), "fed": factorized(FED, (3, 8))}
    Checkpoint(entries, methods={"a": "svd"}, aliases={"z": "a"}, report=Report(rows, 100)).save(tmp_path / "c")
    return tmp_path / "c"


def rewritten(file, change):
    """The same file with a changed header, and the digests of that."""
    arrays, metadata, narrow = storage.read(file)
    header = json.loads(metadata["tnc"])
    changed = change(header)
    text = changed if isinstance(changed, str) and changed[0] == "{" else json.dumps(header)
    storage.write(file, arrays, {"tnc": text}, narrow)


def row(key, value, k=0):
    def change(header):
        report = json.loads(header["report"])
        report["rows"][k][key] = value
        header["report"] = json.dumps(report)

    return change


def calibration(facts):
    return lambda header: header.update(report=json.dumps({"rows": [], "total": 7, "calibration": facts}))


def network(**values):
    return lambda header: header["weights"]["a"]["network"].update(values)


def weight(**values):
    return lambda header: header["weights"]["a"].update(values)


def feed(**values):
    return lambda header: header["weights"]["fed"]["network"]["feed"].update(values)


NAN = float("nan")
WRONG = {
    **{f"version {v}": (lambda h, v=v: h.update(version=v), "version") for v in (NAN, True, -3, 0, 0.5, "2", None)},
    **{
        f"shape {s}": (weight(shape=s), "shape of weight 'a'")
        for s in (
            [-1, 5],
            [5, 0],
            [True, 5],
            [2.5, 5],
            [6.0, 5.0],
            ["6", 8],
            [None, 8],
            [1e400, 8],
            [2**63, 8],
            "58",
            5,
            {},
        )
    },
    "shape too large": (weight(shape=[7, 8]), "cannot hold a weight of shape"),
    "shape too short": (weight(shape=[5]), "cannot hold a weight of shape"),
    "names twice": (lambda h: h["names"].append("a"), "'a' stands twice"),
    "names a string": (lambda h: h.update(names="abfed"), "the list of names"),
    "names of numbers": (lambda h: h.update(names=[1, "b", "fed"]), "a name is 1"),
    "a name lost": (lambda h: h["names"].remove("b"), "belong to nothing: b"),
    "a name more": (lambda h: h["names"].append("gone"), "no tensor of gone"),
    "a weight lost": (lambda h: h["weights"].pop("a"), "no tensor of a"),
    "a weight more": (lambda h: h["weights"].update(q=h["weights"]["a"]), "not in the list of names: q"),
    "aliases a list": (lambda h: h.update(aliases=[["z", "a"]]), "the list of tied names"),
    "tied to nothing": (lambda h: h.update(aliases={"z": "gone"}), "'z' is tied to 'gone'"),
    "tied to a tied name": (lambda h: h.update(aliases={"z": "a", "y": "z"}), "'y' is tied to 'z'"),
    "tied to a number": (lambda h: h.update(aliases={"z": 1}), "what 'z' is tied to"),
    "tied to a list": (lambda h: h.update(aliases={"z": ["a"]}), "what 'z' is tied to"),
    "an entry that is tied": (lambda h: h.update(aliases={"b": "a"}), "'b' is an entry and also tied"),
    "a name that is no text": (lambda h: h.update(aliases={"\ud800": "a"}), "UTF-8"),
    "unknown activation": (feed(activation="swish"), "activation 'swish' is unknown; there are identity, relu"),
    "unhashable activation": (feed(activation=["relu"]), "name of an activation"),
    "no activation": (lambda h: h["weights"]["fed"]["network"]["feed"].pop("activation"), "has no 'activation'"),
    "a feed that is none": (lambda h: h["weights"]["fed"]["network"].update(feed=0), "a feed is 0"),
    "method a number": (weight(method=3), "method of weight 'a'"),
    "method null": (weight(method=None), "method of weight 'a'"),
    "pattern a list": (network(pattern=["m n -> m n"]), "a network is a pattern and a mapping"),
    "pattern null": (network(pattern=None), "a network is a pattern and a mapping"),
    "sizes a list": (network(sizes=[6, 2, 8]), "a network is a pattern and a mapping"),
    "size true": (network(sizes={"m": 6, "r": 2, "n": True}), "index 'n'"),
    "size 8.0": (network(sizes={"m": 6, "r": 2, "n": 8.0}), "index 'n'"),
    "size text": (network(sizes={"m": 6, "r": 2, "n": "8"}), "index 'n'"),
    "sizes other than the cores'": (network(sizes={"m": 6, "r": 1, "n": 8}), "has cores of shapes"),
    "an unknown member": (network(fed=1), "'fed' that is not known"),
    "an unknown member of a weight": (weight(parts=[]), "'parts' that is not known"),
    "an unknown member of the header": (lambda h: h.update(more=1), "'more' that is not known"),
    "roles no text": (weight(roles=[]), "the roles of weight"),
    "roles of another weight": (weight(roles="stack rows columns"), "name 3 axes"),
    "no version": (lambda h: h.pop("version"), "no 'version'"),
    "report no text": (lambda h: h.update(report={}), "the report"),
    "report no object": (lambda h: h.update(report="[]"), "the report"),
    "report's total": (lambda h: h.update(report='{"rows": [], "total": "7"}'), "the report's total"),
    "report's rows": (lambda h: h.update(report='{"rows": {}, "total": 7}'), "the rows"),
    "calibration no object": (calibration(7), "the calibration of the report"),
    "calibration's samples": (calibration({"samples": -1}), "samples in the calibration of the report"),
    "calibration's distance": (calibration({"distance": "far"}), "distance in the calibration of the report"),
    "calibration's objective": (calibration({"objective": 1}), "objective in the calibration of the report"),
    "calibration's distances": (calibration({"distances": {"output": "x"}}), "distances in the calibration"),
    "calibration's list": (calibration({"extra": []}), "extra in the calibration of the report"),
    "a row of an unknown field": (row("odd", 1), "'odd' that is not known"),
    "twice in one object": (lambda h: json.dumps(h)[:-1] + ', "names": []}', "'names' stands twice"),
    "a number of 5,000 digits": (lambda h: json.dumps(h)[:-1] + ', "q": ' + "9" * 5000 + "}", "no JSON"),
    **{
        f"row's {key} {value!r}": (row(key, value), f"{key} in row 0 of the report")
        for key, value in [
            *(("name", 3), ("method", None), ("note", ["x"]), ("shape", "58"), ("shape", [1.5]), ("shape", 5)),
            *(("ranks", None), ("ranks", [True]), ("before", "40"), ("before", 1.5), ("before", -1), ("after", True)),
            *(("nominal", None), ("error", "small"), ("error", True), ("seconds", None), ("seconds", []), ("kept", {})),
            *(("candidates", [7]), ("candidates", [["svd", 3]]), ("candidates", [["svd", 3, "x"]]), ("itemsize", None)),
            *(("operations_before", 0.5), ("operations_after", "7"), ("candidates", [[3, 3, 0.1]]), ("predicted", "x")),
        ]
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name(file, name):
    change, words = WRONG[name]
    rewritten(file, change)
    with pytest.raises(CheckpointError, match="has a damaged header") as caught:
        tnc.load(file)
    assert words in str(caught.value) and str(file) in str(caught.value)
    with pytest.raises(CheckpointError):  # what says nothing of tensors is no less wrong
        tnc.load(file, verify=False)


@pytest.mark.parametrize("error", [None, 0, 0.5, float("inf"), NAN])
def test_values_that_a_report_may_have(file, error):
    rewritten(file, row("error", error))
    found = tnc.load(file).report
    assert repr(found.rows[0].error) == repr(error) and "svd" in str(found)


def test_every_field_of_a_row_is_checked():
    for field in fields(Row):
        kind = str(field.type).removesuffix(" | None")
        assert kind.removeprefix("tuple[").removesuffix(", ...]") in _CHECKS, field.name


def test_every_activation_is_known(file):
    for name in ACTIVATIONS:
        rewritten(file, feed(activation=name))
        assert tnc.load(file)["fed"].network.feed.activation == name


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_cores_are_floats(dtype, file):
    arrays, metadata, narrow = storage.read(file)
    arrays["a.cores.0"] = arrays["a.cores.0"].astype(dtype)
    storage.write(file, arrays, metadata, narrow)
    with pytest.raises(CheckpointError, match=r"'a' has cores of dtypes .* one floating dtype is needed"):
        tnc.load(file)


def test_what_could_not_be_loaded_is_not_saved(file):
    before = file.read_bytes()
    feed = Feed(Network("a -> a", {"a": 2}), "swish")
    odd = Network("q, q n -> q n", {"q": 2, "n": 3}, feed)
    fed = Factorization(odd, [np.ones(2), np.ones((2, 3))], (2, 3))
    for checkpoint, words in (
        (Checkpoint({"w": fed}), "activation 'swish' is unknown"),
        (Checkpoint({"w": np.ones(1)}, aliases={"v": "gone"}), "'v' is tied to 'gone'"),
        (Checkpoint({"w": np.ones(1)}, aliases={"w": "w"}), "'w' is an entry and also tied"),
        (Checkpoint({1: np.ones(1)}), "a name is 1"),
        (Checkpoint({"\ud800": np.ones(1)}), "UTF-8"),
        (Checkpoint({"__metadata__": np.ones(1)}), "reserves this name"),
        (Checkpoint({"w": np.ones(1)}, report=Report([Row("w", 3, ())])), "method in row 0"),
    ):
        with pytest.raises(CheckpointError, match="cannot save") as caught:
            checkpoint.save(file)
        assert words in str(caught.value)
        assert file.read_bytes() == before


def test_a_training_run_is_no_checkpoint(tmp_path):
    storage.write(tmp_path / "run", {}, {"tnc.run": "{}"}, frozenset())
    with pytest.raises(CheckpointError, match=r"state of a training run.*tnc.nn.heal"):
        tnc.load(tmp_path / "run")


def test_long_values_are_shown_in_short():
    with pytest.raises(CheckpointError) as caught:
        claims.whole("9" * 100_000, "a size")
    assert len(str(caught.value)) < 200
