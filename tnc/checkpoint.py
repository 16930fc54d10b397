"""`Checkpoint`: the result of a compression, in memory and as a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tnc import storage
from tnc.backends import move, of
from tnc.decomposition import Factorization
from tnc.errors import CheckpointError
from tnc.files import File, label
from tnc.manifest import Manifest, NewerError, Weight, parse
from tnc.report import Report
from tnc.settings import current_backend
from tnc.typing import Array

__all__ = ["Checkpoint", "load", "read_weights"]


class Checkpoint(Mapping[str, Any]):
    """A mapping from names to weights: a `Factorization` for a compressed weight, an array for a dense one.

    Parameters
    ----------
    entries : mapping of str to Factorization or array
        The weights by name. Tied weights are here under one name.
    methods : mapping of str to str
        The decomposition of each factorized weight, as on the command line. It is only shown to people.
    aliases : mapping of str to str
        Tied names, and the name in `entries` that has the weight.
    narrow : iterable of str
        Names of weights that are float32 only because NumPy has no bfloat16. They are saved as bfloat16.
    report : Report, optional
        The report of the compression.
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
        """The compressed weights. Tied weights are here once."""
        return {name: entry for name, entry in self._entries.items() if isinstance(entry, Factorization)}

    @property
    def n_params(self) -> int:
        """Number of stored parameters. Tied weights count once."""
        entries = self._entries.values()
        return sum(e.n_params if isinstance(e, Factorization) else int(np.prod(e.shape)) for e in entries)

    def weights(self) -> dict[str, Array]:
        """A plain state dict: every name with its dense array."""
        return {name: e.dense() if isinstance(e := self[name], Factorization) else e for name in self}

    def __repr__(self) -> str:
        return f"<Checkpoint: {len(self)} names, {len(self.factorized)} factorized, {self.n_params:,} parameters>"

    # ---------------------------------------------------------------- the file

    def save(self, path: File) -> None:
        """Write one ``.safetensors`` file.

        A new file is written first and then renamed, so that an old file stays as it is after a failure. The same
        checkpoint gives the same bytes.

        Parameters
        ----------
        path : str, PathLike or binary file object
            A device, a pipe or an open file is written directly.

        Raises
        ------
        CheckpointError
            The folder is missing, the disk is full, the file is read-only, two entries would have the same tensor name,
            or the file could not be loaded again.
        """
        arrays: dict[str, np.ndarray] = {}
        narrow, weights = set(), {}
        for name, entry in self._entries.items():
            parts = {name: entry}
            if isinstance(entry, Factorization):
                weights[name] = Weight(
                    entry.network, tuple(map(int, entry.shape)), self.methods.get(name, ""), entry.roles
                )
                parts = dict(zip(weights[name].tensors(name), entry.cores, strict=True))
            for key, array in parts.items():
                if key in arrays:
                    raise CheckpointError(f"two entries are called {key!r}: rename one before saving")
                if (what := of(array).foreign(array)) is not None:
                    raise CheckpointError(
                        f"cannot save {label(path)}: {key} is {what}, which safetensors cannot hold: leave it out, or "
                        "save the model with tnc.nn.save"
                    )
                arrays[key] = of(array).to_numpy(array)
                if name in self.narrow or "bfloat16" in str(array.dtype):
                    narrow.add(key)
        words = Manifest(list(self._entries), weights, self.aliases, self.report).to_json()
        try:
            parse(words).check(storage.described(arrays, frozenset(narrow)))
        except CheckpointError as error:
            raise CheckpointError(f"cannot save {label(path)}: {error}") from error
        storage.write(path, arrays, {"tnc": words, "format": "pt"}, frozenset(narrow))


def load(path: File, *, backend: str | None = None, verify: bool = True) -> Checkpoint:
    """Load a checkpoint. The plugin that made it is not needed.

    The whole header is checked before any part of it is used. The tensors are compared with their digests.

    Parameters
    ----------
    path : str, PathLike or binary file object
    backend : str, optional
        Where the arrays go. By default the current backend, or else NumPy.
    verify : bool
        Whether to check the digests. Files of the first format have none.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        The file does not exist, is truncated, is damaged, is not a safetensors file, or was not written by `tnc`. Or a
        newer version wrote it.
    """
    with storage.opened(path, verify=verify) as contents:
        if "tnc" not in contents.metadata:
            raise CheckpointError(f"{label(path)} {_not_a_checkpoint(contents)}")
        return _checkpoint(label(path), contents, backend, verify)


def _not_a_checkpoint(contents: storage.Contents) -> str:
    """What kind of file this is, if not a checkpoint, and what to do with it."""
    if "tnc.run" in contents.metadata:
        return "is the state of a training run, not a checkpoint: give it to tnc.nn.heal"
    if any(_CORE.search(name) for name in contents.entries):
        return (
            "is the state dict of a compressed model as torch has it, with cores and without their networks (such as "
            "a Trainer's checkpoint), not a checkpoint of tnc: read it with load_state_dict into a model that is "
            "compressed the same way, and save that with tnc.nn.save"
        )
    return (
        "is a safetensors file but not a checkpoint of tnc: compress it first, with tnc.compress_weights or "
        "`tnc compress`"
    )


_CORE = re.compile(r"(^|\.)tnc_[^.]+\.\d+$")
"""Names of cores in the state dict of a compressed module."""


def _checkpoint(label: str, contents: storage.Contents, backend: str | None, verify: bool) -> Checkpoint:
    target = current_backend(backend)
    try:
        manifest = parse(contents.metadata["tnc"])
        manifest.check(contents.entries)
    except NewerError as error:
        raise CheckpointError(f"{label} {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{label} has a damaged header: {error}") from error
    if verify and manifest.version > 1 and contents.digests is None:
        raise CheckpointError(
            f"{label} has format {manifest.version} but no digests: they were taken out; verify=False loads it as it is"
        )
    arrays, narrow = contents.arrays()

    def put(array: Array) -> Array:
        return move(array, target) if target else array

    entries: dict[str, Any] = {}
    narrowed = set()
    for name in manifest.names:
        weight = manifest.weights.get(name)
        keys = weight.tensors(name) if weight else [name]
        parts = [put(arrays.pop(key)) for key in keys]
        entries[name] = Factorization(weight.network, parts, weight.shape, weight.roles) if weight else parts[0]
        if keys[0] in narrow:
            narrowed.add(name)
    methods = {name: weight.method for name, weight in manifest.weights.items() if weight.method}
    return Checkpoint(
        entries, methods=methods, aliases=manifest.aliases, narrow=frozenset(narrowed), report=manifest.report
    )


def read_weights(path: File, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint, or any other safetensors file as a `Checkpoint` of dense weights.

    Parameters
    ----------
    path : str, PathLike or binary file object
    verify : bool
        Whether to check the digests.

    Raises
    ------
    CheckpointError
        The file does not exist, is truncated, is damaged, or is not a safetensors file.
    """
    with storage.opened(path, verify=verify) as contents:
        if "tnc" in contents.metadata:
            return _checkpoint(label(path), contents, None, verify)
        arrays, narrow = contents.arrays()
        return Checkpoint(arrays, narrow=narrow)
