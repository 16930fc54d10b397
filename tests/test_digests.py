"""Digests: whatever is changed in a file, it does not load as something else; older files without them do."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import tnc
from tests.fuzz.originals import content as all_of
from tnc import Checkpoint, Factorization, Network, storage
from tnc.checkpoint import read_weights
from tnc.errors import CheckpointError

FIRST = Path(__file__).parent / "files" / "format1.safetensors"
SVD = Network("m r, r n -> m n", {"m": 3, "r": 2, "n": 3})


def checkpoint():
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal(shape).astype(np.float32) for shape in SVD.core_shapes]
    half = Factorization(SVD, [np.float32(core) for core in (np.ones((3, 2)), np.full((2, 3), 0.5))], (3, 3))
    entries = {"a": Factorization(SVD, cores, (3, 3)), "b": np.arange(6, dtype=np.int32), "half": half}
    entries |= {"c": np.arange(6, 12, dtype=np.int32), "d": np.float64(rng.standard_normal((2, 3)))}
    return Checkpoint(entries, methods={"a": "svd"}, aliases={"z": "b", "y": "a"}, narrow=frozenset({"half"}))


@pytest.fixture
def file(tmp_path):
    checkpoint().save(tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def content(path, **options):
    return all_of(tnc.load(path, **options))


def split(whole):
    """Layout and data of a file."""
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def joined(layout, data):
    head = json.dumps(layout).encode()
    return len(head).to_bytes(8, "little") + head + data


def test_every_flipped_bit_is_noticed(file):
    whole, before = file.read_bytes(), content(file)
    rng, refused = np.random.default_rng(0), 0
    data = len(whole) - len(split(whole)[1])
    for place in range(len(whole)):
        for bit in range(8) if place >= data else [int(rng.integers(8))] * (place % 3 == 0):
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << bit
            try:
                assert content(BytesIO(spoilt)) == before, (
                    place,
                    bit,
                )  # the case of a hexadecimal digit in an escape, say
            except CheckpointError:
                refused += 1
            else:
                assert place < data, "the tensors were changed"
    assert refused > 0.99 * (data / 3 + 8 * (len(whole) - data))


def swapped(layout, a, b):
    layout[a]["data_offsets"], layout[b]["data_offsets"] = layout[b]["data_offsets"], layout[a]["data_offsets"]


def header(change):
    def changed(layout):
        words = json.loads(layout["__metadata__"]["tnc"])
        change(words)
        layout["__metadata__"]["tnc"] = json.dumps(words)

    return changed


def digest_of(layout, name, value):
    words = json.loads(layout["__metadata__"]["tnc.digests"])
    words["entries"][name] = value
    layout["__metadata__"]["tnc.digests"] = json.dumps(words)


@pytest.mark.parametrize(
    "change",
    [
        lambda layout: swapped(layout, "b", "c"),
        lambda layout: layout.update(b=layout["c"], c=layout["b"]),
        lambda layout: layout["b"].update(dtype="F32"),
        lambda layout: layout["b"].update(dtype="U32"),
        lambda layout: layout["half.cores.0"].update(dtype="F16"),
        lambda layout: layout["half.cores.0"].update(dtype="I16"),
        lambda layout: layout["d"].update(shape=[3, 2]),
        lambda layout: layout["b"].update(shape=[6, 1]),
        lambda layout: layout.update(e=layout.pop("b")),
        lambda layout: layout["__metadata__"].update(format="np"),
        lambda layout: layout["__metadata__"].update(more="words"),
        lambda layout: layout["__metadata__"].pop("format"),
        lambda layout: layout["__metadata__"].pop("tnc.digests"),
        lambda layout: layout["__metadata__"].update({"tnc.digests": "{}"}),
        lambda layout: digest_of(layout, "b", "0" * 32),
        lambda layout: digest_of(layout, "b", None),
        lambda layout: digest_of(layout, "q", "0" * 32),
        header(lambda words: words.update(aliases={"z": "c", "y": "a"})),
        header(lambda words: words.update(aliases={"z": "b"})),
        header(lambda words: words.update(names=words["names"][::-1])),
        header(lambda words: words["weights"]["a"].update(method="tucker")),
        header(lambda words: words["weights"]["a"].update(shape=[2, 3])),
        header(lambda words: words["weights"]["a"]["network"].update(pattern="n r, r m -> m n")),
        header(lambda words: words.update(version=1)),
        header(lambda words: words.update(report='{"rows": [], "total": 7}')),
    ],
)
def test_a_file_that_was_edited_is_refused(file, change):
    layout, data = split(file.read_bytes())
    assert content(file)
    change(layout)
    file.write_bytes(joined(layout, data))
    with pytest.raises(CheckpointError, match=r"x.safetensors"):
        tnc.load(file)


def test_the_damaged_entry_is_named_and_the_way_out(file):
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"'half.cores.1' is damaged.*verify=False loads it as it is"):
        tnc.load(file)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights(file)
    with pytest.raises(CheckpointError, match="is damaged"):
        storage.read(file)
    assert list(tnc.load(file, verify=False)) == list(checkpoint()) == list(read_weights(file, verify=False))


def test_digests_that_were_taken_out(file):
    layout, data = split(file.read_bytes())
    del layout["__metadata__"]["tnc.digests"]
    file.write_bytes(joined(layout, data))
    with pytest.raises(CheckpointError, match=r"has format 2 but no digests: they were taken out"):
        tnc.load(file)
    assert list(tnc.load(file, verify=False)) == list(checkpoint())


def test_many_bytes_are_hashed_by_several_threads(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 1 << 18))
    arrays = {str(k): row for k, row in enumerate(x)}
    storage.write(tmp_path / "x", arrays, {}, frozenset())
    found = storage.read(tmp_path / "x")[0]
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    whole = bytearray((tmp_path / "x").read_bytes())
    whole[-7] ^= 16
    (tmp_path / "x").write_bytes(whole)
    with pytest.raises(CheckpointError, match="'3' is damaged"):
        storage.read(tmp_path / "x")


def test_a_file_of_the_first_format():
    """Written by the version that had no digests."""
    found = tnc.load(FIRST)
    assert list(found) == ["a.weight", "a.bias", "fed.weight", "half", "z", "y"]
    assert found.methods == {"a.weight": "svd", "fed.weight": "adtn(depth=2)", "half": "svd"}
    assert found.aliases == {"z": "a.weight", "y": "a.bias"} and found.narrow == {"half"}
    assert found["a.weight"].dense().sum() == 45 and found["fed.weight"].dense().sum() == 3
    assert found["half"].cores[0].tolist() == np.arange(12.0).reshape(6, 2).tolist()
    assert found.report.rows[0].note == "a note" and found.report.total == 100
    with safe_open(FIRST, "np") as opened:
        assert set(opened.metadata()) == {"tnc", "format"} and json.loads(opened.metadata()["tnc"])["version"] == 1


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    files = [tmp_path / str(k) for k in range(4)]
    for file in files:
        checkpoint().save(file)
    tnc.load(files[0]).save(files[3])
    assert len({file.read_bytes() for file in files}) == 1


def test_files_are_those_of_the_format(file, tmp_path):
    with safe_open(file, "np") as found:  # as any other program reads it
        assert sorted(found.keys()) == ["a.cores.0", "a.cores.1", "b", "c", "d", "half.cores.0", "half.cores.1"]
        assert (
            found.get_tensor("b").tolist() == list(range(6)) and found.get_slice("half.cores.0").get_dtype() == "BF16"
        )
    whole = file.read_bytes()
    assert int.from_bytes(whole[:8], "little") % 8 == 0  # tensors are aligned
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "other")
    assert read_weights(tmp_path / "other")["b"].tolist() == [1.0, 1.0]  # others write no digests
