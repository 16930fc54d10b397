"""Where files go and come from: devices, pipes, file objects, links, long names, read-only files."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tnc
from tnc import Checkpoint, Factorization, Network, files, storage
from tnc.checkpoint import read_weights
from tnc.errors import CheckpointError

SVD = Network("m r, r n -> m n", {"m": 6, "r": 2, "n": 8})


@pytest.fixture
def checkpoint(rng):
    cores = [rng.standard_normal(shape) for shape in SVD.core_shapes]
    return Checkpoint({"w": Factorization(SVD, cores, (6, 8)), "b": rng.standard_normal(50_000)})


def whole(checkpoint):
    file = io.BytesIO()
    checkpoint.save(file)
    return file.getvalue()


def equal(found, checkpoint):
    assert list(found) == list(checkpoint)
    return np.array_equal(found["b"], checkpoint["b"]) and np.array_equal(found["w"].dense(), checkpoint["w"].dense())


# ---------------------------------------------------------------- file objects


def test_a_file_object_there_and_back(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "x")
    assert whole(checkpoint) == (tmp_path / "x").read_bytes()
    assert equal(tnc.load(io.BytesIO(whole(checkpoint))), checkpoint)
    for buffering in (-1, 0):
        with open(tmp_path / "x", "rb", buffering) as opened:
            assert equal(tnc.load(opened), checkpoint) and not opened.closed
    with open(tmp_path / "y", "wb", buffering=0) as opened:
        checkpoint.save(opened)
        assert not opened.closed
    assert (tmp_path / "y").read_bytes() == whole(checkpoint)
    assert equal(read_weights(io.BytesIO(whole(checkpoint))), checkpoint)


def test_a_file_object_is_taken_from_where_it_stands(checkpoint):
    file = io.BytesIO()
    file.write(b"before")
    checkpoint.save(file)
    file.seek(6)
    assert equal(tnc.load(file), checkpoint)


def test_arrays_of_a_file_object_can_be_written(checkpoint):
    found = tnc.load(io.BytesIO(whole(checkpoint)))["b"]
    found += 1
    assert found.flags.writeable and found.flags.aligned


def test_an_object_that_only_reads(checkpoint):
    class Answer:
        """As of a server: short reads, no seek, no size."""

        def __init__(self, data):
            self.data = io.BytesIO(data)

        def read(self, size):
            return self.data.read(min(size, 1000))

    assert equal(tnc.load(Answer(whole(checkpoint))), checkpoint)
    with pytest.raises(CheckpointError, match=r"<Answer>.*truncated"):
        tnc.load(Answer(whole(checkpoint)[:-1]))
    with pytest.raises(CheckpointError, match="bytes follow after the last tensor"):
        tnc.load(Answer(whole(checkpoint) + b"x"))


def test_a_raw_file_may_take_a_part(checkpoint):
    class Slow(io.RawIOBase):
        held = b""

        def write(self, data):
            self.held += bytes(data[:777])
            return min(777, len(data))

    slow = Slow()
    checkpoint.save(slow)
    assert slow.held == whole(checkpoint)


def test_text_files_are_refused(checkpoint, tmp_path):
    with open(tmp_path / "x", "w") as opened, pytest.raises(CheckpointError, match="open it in binary mode, 'wb'"):
        checkpoint.save(opened)
    checkpoint.save(tmp_path / "x")
    with open(tmp_path / "x") as opened, pytest.raises(CheckpointError, match="open it in binary mode, 'rb'"):
        tnc.load(opened)


def test_a_stream_that_announces_much_takes_no_memory(monkeypatch):
    layout = b'{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'
    file = io.BytesIO(len(layout).to_bytes(8, "little") + layout + bytes(100))
    with pytest.raises(CheckpointError, match=r"4,000,000,000,000 bytes are announced, 100 came"):
        storage.read(file)
    with pytest.raises(CheckpointError, match="a layout of"):
        storage.read(io.BytesIO(b"\xff" * 100))


# -------------------------------------------------------------- devices, pipes


@pytest.fixture
def null(tmp_path):
    """A device as /dev/null is one, but not that of the machine."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat("/dev/null").st_rdev)
        path.write_bytes(b"")  # some file systems hold no devices
    except OSError:
        pytest.skip("devices cannot be made here")
    return path


def test_a_device_is_written_to_not_replaced(checkpoint, null):
    link = null.parent / "link"
    link.symlink_to(null)
    for path in (null, str(null), link):
        checkpoint.save(path)
        assert stat.S_ISCHR(null.stat().st_mode) and link.is_symlink()
    assert sorted(os.listdir(null.parent)) == ["link", "null"]
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        tnc.load(null)


def test_the_null_of_this_machine(checkpoint):
    before = os.stat("/dev/null")
    checkpoint.save("/dev/null")
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_device_that_is_full(checkpoint):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(
        CheckpointError, match="No space left on device; what was written so far is not a complete file"
    ):
        checkpoint.save("/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_disk_is_refused(checkpoint, tmp_path):
    try:
        os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    except OSError:
        pytest.skip("devices cannot be made here")
    with pytest.raises(CheckpointError, match="it is a disk; name a file on it"):
        checkpoint.save(tmp_path / "disk")


def test_through_a_pipe(checkpoint, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=checkpoint.save, args=[tmp_path / "pipe"])
    writer.start()
    found = tnc.load(tmp_path / "pipe")
    writer.join()
    assert equal(found, checkpoint) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_through_the_shell(checkpoint, tmp_path):
    """Standard output as a pipe and as a file."""
    checkpoint.save(tmp_path / "x")
    code = "import sys, tnc; tnc.load(sys.argv[1]).save('/dev/stdout')"
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == whole(checkpoint)
    with open(tmp_path / "y", "wb") as out:
        subprocess.run(command, stdout=out, check=True)
    assert (tmp_path / "y").read_bytes() == whole(checkpoint)
    code = "import tnc; print(list(tnc.load('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input=whole(checkpoint), capture_output=True, check=True)
    assert done.stdout == b"['w', 'b']\n"


def test_a_pipe_that_nobody_reads_any_more(checkpoint):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as file, pytest.raises(CheckpointError, match="Broken pipe"):
        checkpoint.save(file)


# ------------------------------------------------------------------ names, paths


@pytest.mark.parametrize("name", ["x", "y" * 255, "ы" * 127, "a b\n", "-", ".safetensors"])
def test_every_name_that_the_system_takes(name, checkpoint, tmp_path):
    for _ in range(2):
        checkpoint.save(tmp_path / name)
    assert os.listdir(tmp_path) == [name] and equal(tnc.load(tmp_path / name), checkpoint)


@pytest.mark.parametrize("name", ["z" * 256, "a\0b"], ids=["256 bytes", "NUL"])
def test_names_that_it_does_not(name, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="cannot save"):
        checkpoint.save(str(tmp_path / name))
    with pytest.raises(CheckpointError, match="cannot load"):
        tnc.load(str(tmp_path / name))
    assert os.listdir(tmp_path) == []


def test_a_folder_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="it is a folder; name a file in it"):
        checkpoint.save(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        tnc.load(tmp_path)


def test_links(checkpoint, tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    checkpoint.save(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink() and equal(tnc.load(tmp_path / "new"), checkpoint)
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot save"):
        checkpoint.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot load"):
        tnc.load(tmp_path / "a")


def test_a_read_only_file_stays(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))  # the superuser may write anything
    with pytest.raises(CheckpointError, match="it is read-only; make it writable or take another name"):
        checkpoint.save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_file_that_is_shortened_while_it_is_read(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "x")
    with storage.opened(tmp_path / "x") as contents:
        os.truncate(tmp_path / "x", 2000)
        with pytest.raises(CheckpointError, match="shortened while it was read"):
            contents.arrays()


def test_files_are_closed(checkpoint, tmp_path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else pytest.skip("no /proc")
    checkpoint.save(tmp_path / "x")
    tnc.load(tmp_path / "x")
    (tmp_path / "bad").write_bytes(b"bad")
    for path in (tmp_path / "bad", tmp_path / "gone"):
        with pytest.raises(CheckpointError):
            tnc.load(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_labels():
    assert files.label("a") == "'a'" and files.label(io.BytesIO()) == "'<BytesIO>'"
