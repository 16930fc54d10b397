"""Harm to the file: whatever fails, the old one stays; what is damaged is named, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tnc import files, storage
from tnc.errors import CheckpointError

NONE: frozenset[str] = frozenset()


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "x.safetensors"
    storage.write(path, {"x": np.arange(3.0)}, {"age": "old"}, NONE)
    return path


def unharmed(path):
    assert os.listdir(path.parent) == [path.name]
    arrays, header, _ = storage.read(path)
    return arrays["x"].tolist() == [0.0, 1.0, 2.0] and header == {"age": "old"}


def test_a_new_file_replaces_the_old(old):
    storage.write(old, {"y": np.ones(1)}, {}, NONE)
    assert os.listdir(old.parent) == [old.name] and set(storage.read(old)[0]) == {"y"}


@pytest.mark.parametrize("step", ["_writer", "_flush", "_mode"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_a_failure_at_any_step_leaves_the_old_file(step, error, old, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(files, step, fail)
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        storage.write(old, {"y": np.ones(1)}, {}, NONE)
    if isinstance(error, OSError):
        assert "No space left on device; a file that was there is unchanged" in str(caught.value)
    monkeypatch.undo()
    assert unharmed(old)


def test_a_full_disk_in_the_middle_of_the_file(old, monkeypatch):
    def half(file):
        def write(data):
            file.write(memoryview(data)[:20])
            raise OSError(28, "No space left on device")

        return write

    monkeypatch.setattr(files, "_writer", half)
    with pytest.raises(CheckpointError, match="No space left"):
        storage.write(old, {"y": np.ones(1000)}, {}, NONE)
    assert unharmed(old)


def test_a_failing_rename(old, monkeypatch):
    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="Permission denied"):
        storage.write(old, {"y": np.ones(1)}, {}, NONE)
    monkeypatch.undo()
    assert unharmed(old)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_saving(moment, old):
    # SIGKILL: nothing can be cleaned up, but the file under its own name is whole.
    code = f"""
    import os, signal, sys
    import numpy as np
    from tnc import files, storage
    def kill(*args):
        os.kill(os.getpid(), signal.SIGKILL)
    if {moment!r} == "before":
        files._writer = lambda file: lambda data: (file.write(data[:20]), kill())
    else:
        os.replace = kill
    storage.write(sys.argv[1], {{"y": np.ones(1000)}}, {{}}, frozenset())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(old)], check=False)
    assert done.returncode == -9
    assert storage.read(old)[1] == {"age": "old"}
    left = [name for name in os.listdir(old.parent) if name != old.name]
    assert len(left) == 1 and left[0].startswith(".tnc-") and left[0].endswith(".part")


def test_bytes_are_on_the_disk_before_the_name_changes(old, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("replace"), replace(*args)))
    storage.write(old, {"y": np.ones(1)}, {}, NONE)
    assert order[:2] == ["fsync", "replace"]


def test_permissions(old, tmp_path):
    os.chmod(old, 0o640)
    storage.write(old, {"y": np.ones(1)}, {}, NONE)
    assert old.stat().st_mode & 0o777 == 0o640
    before = os.umask(0o027)
    try:
        storage.write(tmp_path / "new", {"y": np.ones(1)}, {}, NONE)
    finally:
        assert os.umask(before) == 0o027
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot save '.*gone/x': the folder '.*gone' does not exist; create it"):
        storage.write(tmp_path / "gone" / "x", {"x": np.ones(1)}, {}, NONE)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match="cannot save"):
        storage.write(tmp_path / "x", {"x": np.ones(1)}, {}, NONE)
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_stays_a_link(old, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(old)
    storage.write(link, {"y": np.ones(1)}, {}, NONE)
    assert link.is_symlink() and set(storage.read(old)[0]) == {"y"} and os.listdir(link.parent) == ["link"]


# -------------------------------------------------------------------- damage


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot load '.*gone': there is no such file"):
        storage.read(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no such file"):
        storage.read(tmp_path)


def test_every_truncation_is_noticed(old):
    whole = old.read_bytes()
    for length in range(len(whole)):
        old.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cannot load .*: truncated or not a safetensors file"):
            storage.read(old)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file of pickles",
        b"\x80\x04\x95 a pickle",
        b"\x93NUMPY\x01\x00 an array",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 9) + b'{"x": 1  ',
        struct.pack("<Q", 8) + b'{"x":1} ',
    ],
    ids=repr,
)
def test_foreign_files(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        storage.read(tmp_path / "x")


def test_overlapping_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    layout = json.dumps({"a": entry, "b": entry}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(layout)) + layout + bytes(8))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        storage.read(tmp_path / "x")


def test_a_dtype_numpy_lacks(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"x": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"x has dtype F8_E4M3, which is not supported"):
        storage.read(tmp_path / "x")


def test_nothing_is_unpickled(old, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    for verb in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, verb, refuse)
    assert unharmed(old)
    old.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(CheckpointError):
        storage.read(old)
