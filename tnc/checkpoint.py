"""A `Checkpoint` is the value between compression and model, and also the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tnc import storage
from tnc.backends import move, of
from tnc.decomposition import Factorization
from tnc.errors import CheckpointError, TncError, listed
from tnc.network import Network
from tnc.report import Report
from tnc.settings import current_backend
from tnc.typing import Array

__all__ = ["Checkpoint", "load", "read_weights"]

_VERSION = 1


class Checkpoint(Mapping[str, Any]):
    """Names to weights: a `Factorization` where it was compressed, the array where it stayed dense.

    Parameters
    ----------
    entries : mapping of str to Factorization or array
    methods : mapping of str to str
        Decomposition of every factorized name, as written on the command line; for people only.
    aliases : mapping of str to str
        Tied names: each stands for another name's entry.
    narrow : iterable of str
        Names held as float32 only because NumPy has no bfloat16; saved as bfloat16.
    report : Report, optional
    """

    def __init__(
        self,
        entries: Mapping[str, Any],
        *,
        methods: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        narrow: frozenset[str] = frozenset(),
        report: Report | None = None,
    ) -> None:
        self._entries, self.methods, self.aliases = dict(entries), dict(methods or {}), dict(aliases or {})
        self.narrow = frozenset(narrow)
        self.report = report or Report([])

    def __getitem__(self, name: str) -> Any:
        return self._entries[self.aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from self.aliases

    def __len__(self) -> int:
        return len(self._entries) + len(self.aliases)

    @property
    def factorized(self) -> dict[str, Factorization]:
        """The compressed weights, tied names once."""
        return {name: entry for name, entry in self._entries.items() if isinstance(entry, Factorization)}

    @property
    def n_params(self) -> int:
        """Stored parameters, tied ones once."""
        entries = self._entries.values()
        return sum(e.n_params if isinstance(e, Factorization) else int(np.prod(e.shape)) for e in entries)

    def weights(self) -> dict[str, Array]:
        """Every name as a dense array: a plain state dict."""
        return {name: e.dense() if isinstance(e := self[name], Factorization) else e for name in self}

    def __repr__(self) -> str:
        return f"<Checkpoint: {len(self)} names, {len(self.factorized)} factorized, {self.n_params:,} parameters>"

    # ---------------------------------------------------------------- the file

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, beside and renamed: a failure leaves an old file as it was.

        Raises
        ------
        CheckpointError
            The folder is missing, the disk is full, or two entries would share a tensor name.
        """
        arrays: dict[str, np.ndarray] = {}
        narrow, weights = set(), {}
        for name, entry in self._entries.items():
            parts = {name: entry}
            if isinstance(entry, Factorization):
                parts = {f"{name}.cores.{k}": core for k, core in enumerate(entry.cores)}
                weights[name] = {
                    "network": entry.network.to_dict(),
                    "shape": list(entry.shape),
                    "method": self.methods.get(name, ""),
                }
            for key, array in parts.items():
                if key in arrays:
                    raise CheckpointError(f"two entries are called {key!r}: rename one before saving")
                arrays[key] = of(array).to_numpy(array)
                if name in self.narrow or "bfloat16" in str(array.dtype):
                    narrow.add(key)
        header = {"version": _VERSION, "names": list(self._entries), "weights": weights, "aliases": self.aliases}
        header["report"] = self.report.to_json()
        storage.write(path, arrays, {"tnc": json.dumps(header), "format": "pt"}, frozenset(narrow))


def load(path: str | Path, *, backend: str | None = None) -> Checkpoint:
    """Load a checkpoint; the plugin that made it is not needed.

    Parameters
    ----------
    path : str or Path
    backend : str, optional
        Where the arrays go; the backend in force, else NumPy.

    Raises
    ------
    CheckpointError
        No such file, truncated, not a safetensors file, not written by `tnc`, or by a newer version.
    """
    arrays, metadata, narrow = storage.read(path)
    if "tnc" not in metadata:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file but not a checkpoint of tnc: compress it first, "
            "with tnc.compress_weights or `tnc compress`"
        )
    place = current_backend(backend)
    try:
        header = json.loads(metadata["tnc"])
        if header["version"] > _VERSION:
            raise CheckpointError(
                f"{str(path)!r} has format {header['version']}, newer than {_VERSION}: upgrade tncompress"
            )
        put = (lambda x: move(x, place)) if place else (lambda x: x)
        entries: dict[str, Any] = {}
        for name, data in header["weights"].items():
            network = Network.from_dict(data["network"])
            cores = [put(arrays.pop(f"{name}.cores.{k}")) for k in range(len(network.core_shapes))]
            entries[name] = Factorization(network, cores, tuple(data["shape"]))
        entries |= {name: put(array) for name, array in arrays.items()}
        if lost := {*header["names"], *header["aliases"].values()} - set(entries):
            raise KeyError(f"no tensor of {listed(sorted(lost))}")
        return Checkpoint(
            {name: entries[name] for name in (*header["names"], *arrays)},  # in the order they were saved
            methods={name: data["method"] for name, data in header["weights"].items()},
            aliases=header["aliases"],
            narrow=frozenset(key if key in arrays else key.rpartition(".cores.")[0] for key in narrow),
            report=Report.from_json(header["report"]),
        )
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, TncError) as error:
        raise CheckpointError(f"{str(path)!r} has a damaged header: {type(error).__name__}: {error}") from error


def read_weights(path: str | Path) -> Checkpoint:
    """The weights of any safetensors file as an all-dense `Checkpoint`, or those of a checkpoint as it is.

    Raises
    ------
    CheckpointError
        No such file, truncated or not a safetensors file.
    """
    arrays, metadata, narrow = storage.read(path)
    return load(path) if "tnc" in metadata else Checkpoint(arrays, narrow=narrow)
