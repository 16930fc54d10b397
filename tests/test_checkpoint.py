"""A checkpoint is a mapping and a file: it loads without its plugin, keeps every dtype, and says what is wrong."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import tnc
from tnc import Checkpoint, Factorization, Network, Report, files, storage
from tnc.backends import of
from tnc.checkpoint import load, read_weights
from tnc.errors import CheckpointError
from tnc.network import Feed
from tnc.report import Row

SVD = Network("m r, r n -> m n", {"m": 6, "r": 2, "n": 8})
FEED = Feed(Network("a r, r b -> a b", {"a": 3, "r": 1, "b": 2}), "tanh")
FED = Network("m q, q n -> m n", {"m": 3, "q": 2, "n": 8}, FEED)


def factorized(network, shape, place=None, dtype="float64"):
    rng = np.random.default_rng(1)
    cores = [rng.standard_normal(s).astype(dtype) for s in network.core_shapes]
    return Factorization(network, [place.from_numpy(c) for c in cores] if place else cores, shape)


def same(place, a, b):
    return of(a).to_numpy(a).dtype == of(b).to_numpy(b).dtype and np.array_equal(of(a).to_numpy(a), of(b).to_numpy(b))


@pytest.fixture
def checkpoint():
    report = Report([Row("a", "svd", (5, 8), (2,), 40, 28, 28, 0.1, 0.5, "note")], total=100)
    entries = {"a": factorized(SVD, (5, 8)), "b": np.arange(4), "c.fed": factorized(FED, (3, 8))}
    return Checkpoint(entries, methods={"a": "svd", "c.fed": "other(x=1)"}, aliases={"z": "a", "y": "b"}, report=report)


@pytest.fixture
def file(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


# ------------------------------------------------------------------- mapping


def test_a_mapping_with_tied_names(checkpoint):
    assert list(checkpoint) == ["a", "b", "c.fed", "z", "y"] and len(checkpoint) == 5
    assert checkpoint["z"] is checkpoint["a"] and checkpoint["y"] is checkpoint["b"] and "q" not in checkpoint
    assert list(checkpoint.factorized) == ["a", "c.fed"]
    assert checkpoint.n_params == 2 * (6 + 8) + 4 + (3 + 2 + 16)
    assert repr(checkpoint) == "<Checkpoint: 5 names, 2 factorized, 53 parameters>"
    with pytest.raises(KeyError):
        checkpoint["q"]


def test_weights_are_a_plain_state_dict(checkpoint):
    weights = checkpoint.weights()
    assert list(weights) == list(checkpoint) and weights["b"] is checkpoint["b"]
    np.testing.assert_allclose(weights["a"], checkpoint["a"].dense())
    assert weights["z"].shape == (5, 8) and np.array_equal(weights["z"], weights["a"])


# -------------------------------------------------------------- there and back


def test_there_and_back(checkpoint, file):
    found = load(file)
    assert list(found) == list(checkpoint) and found.methods == checkpoint.methods
    assert found.aliases == checkpoint.aliases and found.narrow == checkpoint.narrow
    for name in ("a", "c.fed"):
        assert found[name].network == checkpoint[name].network and found[name].shape == checkpoint[name].shape
        for x, y in zip(found[name].cores, checkpoint[name].cores, strict=True):
            assert x.dtype == y.dtype and np.array_equal(x, y)
    assert np.array_equal(found["b"], checkpoint["b"]) and found["b"].dtype == checkpoint["b"].dtype
    assert found.report.rows == checkpoint.report.rows and found.report.total == 100


def content(path):
    arrays, header, narrow = storage.read(path)
    return {name: (x.dtype, x.tolist()) for name, x in arrays.items()}, header, narrow


def test_saving_what_was_loaded_gives_the_same_file(file, tmp_path):
    load(file).save(tmp_path / "again")
    assert content(tmp_path / "again") == content(file)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_dtype_of_cores(dtype, place, tmp_path):
    if not hasattr(place.xp, dtype):
        pytest.skip(f"{place.name} has no {dtype}")
    entries = {"w": factorized(SVD, (6, 8), place, dtype), "v": place.from_numpy(np.ones(3, dtype))}
    Checkpoint(entries).save(tmp_path / "c")
    found = load(tmp_path / "c")
    assert found["w"].cores[0].dtype == dtype and isinstance(found["w"].cores[0], np.ndarray)
    assert all(same(place, a, b) for a, b in zip(found["w"].cores, entries["w"].cores, strict=True))
    assert same(place, found["v"], entries["v"])


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "complex64"])
def test_every_dtype_of_dense_entries(dtype, place, tmp_path):
    x = place.from_numpy(np.array([[1, 0, 1]], dtype))
    Checkpoint({"x": x, "scalar": place.from_numpy(np.array(1, dtype))}).save(tmp_path / "c")
    found = load(tmp_path / "c")
    assert same(place, found["x"], x) and found["scalar"].shape == ()


def test_loading_to_a_place(place, file, tmp_path):
    if place.name not in tnc.backends.registry:
        pytest.skip(f"{place.name} is no registered backend")
    spec = f"{place.name}:{place.device}" if place.device else place.name
    for found in (load(file, backend=spec), tnc.load(str(file), backend=spec)):
        assert all(place.holds(core) for core in found["a"].cores) and place.holds(found["b"])
    with tnc.use_backend(spec):
        assert place.holds(load(file)["b"])


def test_bfloat16_there_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    cores = [torch.randn(s, generator=torch.Generator().manual_seed(0)).bfloat16() for s in SVD.core_shapes]
    names = {"w": Factorization(SVD, cores, (6, 8)), "x.cores.0.y": torch.ones(2).bfloat16(), "full": torch.ones(2)}
    names["d.cores.w"] = Factorization(SVD, cores, (6, 8))
    Checkpoint(names, aliases={"t": "w"}).save(tmp_path / "a")
    found = load(tmp_path / "a")
    assert found.narrow == {"w", "x.cores.0.y", "d.cores.w"} and found["w"].cores[0].dtype == np.float32
    assert np.array_equal(found["w"].cores[0], cores[0].float().numpy())
    found.save(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    with tnc.use_backend("torch"):
        load(tmp_path / "a").save(tmp_path / "c")
    assert content(tmp_path / "a") == content(tmp_path / "c")


def test_gradients_do_not_matter(tmp_path):
    torch = pytest.importorskip("torch")
    cores = [torch.ones(s, requires_grad=True) for s in SVD.core_shapes]
    Checkpoint({"w": Factorization(SVD, cores, (6, 8))}).save(tmp_path / "a")
    assert load(tmp_path / "a")["w"].cores[0].tolist() == np.ones((6, 2)).tolist()


def test_the_file_is_readable_by_others(file):
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        assert sorted(opened.keys()) == ["a.cores.0", "a.cores.1", "b", *(f"c.fed.cores.{k}" for k in range(3))]
        header = json.loads(opened.metadata()["tnc"])
    assert header["version"] == 2 and header["names"] == ["a", "b", "c.fed"]
    assert header["aliases"] == {"z": "a", "y": "b"}
    assert header["weights"]["a"] == {"network": SVD.to_dict(), "shape": [5, 8], "method": "svd"}


# -------------------------------------------------------------------- failure


def test_two_entries_of_one_name(tmp_path):
    both = Checkpoint({"a": factorized(SVD, (6, 8)), "a.cores.0": np.ones(2)})
    with pytest.raises(CheckpointError, match=r"two entries are called 'a.cores.0': rename one"):
        both.save(tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(checkpoint, file, monkeypatch):
    before = file.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        Checkpoint({"other": np.ones(3)}).save(file)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_foreign(tmp_path):
    save_file({"w": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of tnc: compress it first"):
        load(tmp_path / "other.safetensors")
    found = read_weights(tmp_path / "other.safetensors")
    assert list(found) == ["w"] and not found.factorized


def test_weights_of_a_checkpoint_are_the_checkpoint(file, checkpoint):
    assert list(read_weights(file)) == list(checkpoint)


def rewritten(file, change):
    """The same file with a changed header."""
    arrays, metadata, narrow = storage.read(file)
    header = json.loads(metadata["tnc"])
    changed = change(header)
    storage.write(file, arrays, {"tnc": json.dumps(header if changed is None else changed)}, narrow)


def test_a_newer_version(file):
    rewritten(file, lambda header: header.update(version=3))
    with pytest.raises(CheckpointError, match=r"has format 3, newer than 2: upgrade tncompress"):
        load(file)


def network_of(header):
    return header["weights"]["a"]["network"]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("version"),
        lambda h: h.update(version="new"),
        lambda h: h.pop("weights"),
        lambda h: h.update(weights=[]),
        lambda h: h["weights"].update(gone=h["weights"]["a"]),
        lambda h: h["weights"]["a"].pop("shape"),
        lambda h: h["weights"]["a"].update(shape=[7, 8]),
        lambda h: h["weights"]["a"].update(shape=[5]),
        lambda h: h["weights"]["a"].update(shape=None),
        lambda h: h["weights"]["a"].update(network=None),
        lambda h: network_of(h).update(pattern="m r, r n"),
        lambda h: network_of(h).update(pattern=3),
        lambda h: network_of(h)["sizes"].update(m=7),
        lambda h: network_of(h)["sizes"].update(m="6"),
        lambda h: network_of(h)["sizes"].pop("m"),
        lambda h: network_of(h).update(feed={"network": {}}),
        lambda h: h.update(aliases={"z": "gone"}),
        lambda h: h.update(aliases=None),
        lambda h: h.update(aliases=[["z", "a"]]),
        lambda h: h.pop("names"),
        lambda h: h["names"].append("gone"),
        lambda h: h.pop("report"),
        lambda h: h.update(report="{"),
        lambda h: h.update(report='{"rows": [{"odd": 1}], "total": 0}'),
        lambda h: [],
        lambda h: "text",
    ],
)
def test_a_damaged_header(file, change):
    rewritten(file, lambda header: result if isinstance(result := change(header), list | str) else None)
    with pytest.raises(CheckpointError, match="has a damaged header") as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_header_that_is_no_json(file):
    arrays, _, narrow = storage.read(file)
    storage.write(file, arrays, {"tnc": "not json"}, narrow)
    with pytest.raises(CheckpointError, match="has a damaged header"):
        load(file)
