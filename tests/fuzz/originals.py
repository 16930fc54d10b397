"""Small checkpoints of every kind, as bytes: what the mutants are made from."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import tnc
from tnc import Checkpoint, Factorization, Network, Report
from tnc.network import Feed
from tnc.report import Row
from tnc.storage import Entry, _digest, _seal

FIRST = (Path(__file__).parents[1] / "files" / "format1.safetensors").read_bytes()

SVD = Network("m r, r n -> m n", {"m": 5, "r": 2, "n": 6})
MPO = Network("m0 n0 r1, r1 m1 n1 -> (m0 m1) (n0 n1)", {"m0": 2, "n0": 3, "r1": 2, "m1": 2, "n1": 2})
CP = Network("m r, n r, k r -> m n k", {"m": 3, "n": 4, "k": 2, "r": 5})
RING = Network("s m r, r n q, q k s -> m n k", {"m": 2, "n": 3, "k": 2, "r": 2, "q": 1, "s": 2})
WALL = Network("a r, r b -> a b", {"a": 3, "r": 1, "b": 2})
FED = Network("m q, q n -> m n", {"m": 3, "q": 2, "n": 4}, Feed(WALL, "tanh"))
TWICE = Network("m n r, r t -> (m t) n", {"m": 3, "n": 4, "r": 2, "t": 2}, Feed(FED, "relu"))


def factorized(network: Network, shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> Factorization:
    rng = np.random.default_rng(seed)
    return Factorization(network, [rng.integers(-8, 9, s).astype(dtype) / 4 for s in network.core_shapes], shape)


def checkpoints() -> list[Checkpoint]:
    """Compressed and dense, tied and alone, of every dtype, and one that holds nothing."""
    rng = np.random.default_rng(0)
    rows = [Row("fc.weight", "svd", (5, 6), (2,), 30, 22, 22, 0.25, 0.5, "a note"), Row("x", "dense", (4,), error=None)]
    layers = {"fc.weight": factorized(SVD, (5, 6)), "fc.bias": rng.standard_normal(5), "n": np.arange(5)}
    layers |= {"conv": factorized(CP, (3, 4, 2), 1), "other": factorized(SVD, (4, 6), 2), "m": np.arange(5, 10)}
    walls = {"a": factorized(MPO, (4, 6)), "b": factorized(FED, (3, 4), 1), "c": factorized(TWICE, (6, 4), 2)}
    halves = {"w": factorized(RING, (2, 3, 2)), "v": np.ones(3, np.float32), "h": factorized(SVD, (5, 6), 3, "float16")}
    halves |= {"d": factorized(SVD, (5, 6), 4, "float64"), "scalar": np.array(3.5), "none": np.ones((0, 3), np.int8)}
    halves |= {"flags": np.array([True, False]), "z": np.ones(2, np.complex64), "wide": np.arange(3, dtype=np.uint64)}
    return [
        Checkpoint(layers, methods={"fc.weight": "svd", "conv": "cp"}, aliases={"tied": "fc.weight", "k": "n"},
                   report=Report(rows, 99)),
        Checkpoint(walls, methods={"a": "mpo(order=2)"}),
        Checkpoint(halves, narrow=frozenset({"w", "v"})),
        Checkpoint({}),
    ]  # fmt: skip


def originals() -> list[bytes]:
    """Their files."""
    found = []
    for checkpoint in checkpoints():
        file = BytesIO()
        checkpoint.save(file)
        found.append(file.getvalue())
    return found


def content(checkpoint: Checkpoint) -> Any:
    """All that a checkpoint says, to compare."""
    entries = {}
    for name in checkpoint:
        entry = checkpoint[name]
        arrays = entry.cores if isinstance(entry, Factorization) else [entry]
        network = (entry.network, entry.shape) if isinstance(entry, Factorization) else None
        entries[name] = network, [(x.dtype.str, x.shape, x.tobytes()) for x in arrays]
    return entries, checkpoint.methods, checkpoint.aliases, checkpoint.narrow, checkpoint.report.to_json()


def loaded(raw: bytes, **options: Any) -> Checkpoint:
    return tnc.load(BytesIO(raw), **options)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The layout and the data of a file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(layout: Any, data: bytes) -> bytes:
    """A file of any layout, right or wrong."""
    head = (layout if isinstance(layout, str) else json.dumps(layout)).encode("utf-8", "surrogatepass")
    return len(head).to_bytes(8, "little") + head + data


def sealed(layout: dict[str, Any], data: bytes) -> bytes:
    """The same with digests that are right, as far as the layout makes sense: what a stranger would write."""
    words = {k: v for k, v in layout.get("__metadata__", {}).items() if k != "tnc.digests"}
    digests = {}
    for name, entry in layout.items():
        if name == "__metadata__":
            continue
        try:
            start, end = entry["data_offsets"]
            found = np.frombuffer(data[start:end], np.uint8)
            digests[name] = _digest(name, Entry(entry["dtype"], tuple(entry["shape"])), found)
        except Exception:  # whatever: the layout is wrong on purpose
            digests[name] = "0" * 32
    listed = {"algorithm": "blake2b-128", "entries": digests, "header": ""}
    with suppress(Exception):  # likewise
        listed["header"] = _seal(words, digests)
    return joined({**layout, "__metadata__": {**words, "tnc.digests": json.dumps(listed)}}, data)
