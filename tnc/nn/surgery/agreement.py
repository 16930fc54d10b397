"""Whether a checkpoint fits a model: compare the names and the shapes of both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tnc.checkpoint import Checkpoint
from tnc.errors import CheckpointError, listed
from tnc.nn.surgery.inventory import Entry, inventory, is_pinned
from tnc.nn.surgery.packing import PACKED
from tnc.nn.surgery.parameters import computed

__all__ = ["Agreement", "find_agreement"]

_BATCH_COUNT = "num_batches_tracked"
"""A buffer that only counts batches; torch loads files that lack it."""

_EXTRA_STATE = "_extra_state"
"""The end of the name of a module's extra state. Its shape may change."""

_WRONG_SHAPE = "of another shape"

Shapes = Mapping[str, tuple[int, ...] | None]
"""Shapes by name; None for what is not an array."""


@dataclass(frozen=True)
class Agreement:
    """What a model and a checkpoint share.

    Attributes
    ----------
    entries : dict of str to Entry
        The entries of the model's state dict, by name.
    shared : tuple of str
        The names to load.
    computed : tuple of str
        Those shared names that a parametrization of the model computes, while the file holds the tensor itself.
    """

    entries: dict[str, Entry]
    shared: tuple[str, ...]
    computed: tuple[str, ...]


def find_agreement(model: nn.Module, checkpoint: Checkpoint, strict: bool) -> Agreement:
    """Find the names that a model and a checkpoint share.

    Some differences are allowed. As in torch, the file may lack a count of batches, and it may hold buffers that are
    never saved (older versions wrote them). A name may also be missing if the model ties it to a name in the file.

    Parameters
    ----------
    model : torch.nn.Module
    checkpoint : Checkpoint
    strict : bool
        Whether a name that only the model or only the file has is an error. If no name is shared, it always is.

    Returns
    -------
    Agreement

    Raises
    ------
    CheckpointError
        Names or shapes do not agree. The message lists all of them.
    """
    in_file = _shapes_in_file(checkpoint)
    parametrized = tuple(name for name in computed(model) if name in in_file)
    entries = _without_parametrizations(inventory(model), parametrized)
    in_model = {name: entry.shape for name, entry in entries.items()}
    in_model |= {name: tuple(_tensor(model, name).shape) for name in parametrized}
    shared = tuple(name for name in in_file if name in in_model)
    problems: dict[str, list[str]] = {}
    if strict or not shared:
        problems["missing from the checkpoint"] = _missing(entries, in_file)
        problems["unexpected"] = _unexpected(model, in_file, in_model)
    problems[_WRONG_SHAPE] = _wrong_shapes(shared, in_file, in_model)
    _raise_if_any(problems, strict)
    return Agreement(entries, shared, parametrized)


def _shapes_in_file(checkpoint: Checkpoint) -> Shapes:
    """Names of the file and their shapes; packed values have no shape."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name in checkpoint:
        if name.endswith(PACKED):
            shapes[name.removesuffix(PACKED)] = None
        elif not is_pinned(name):
            shapes[name] = tuple(checkpoint[name].shape)
    return shapes


def _without_parametrizations(entries: dict[str, Entry], parametrized: Iterable[str]) -> dict[str, Entry]:
    """The entries without the inner tensors of these parametrizations, as loading removes the parametrizations."""
    for name in parametrized:
        path, _, leaf = name.rpartition(".")
        prefix = f"{path}.parametrizations.{leaf}.".removeprefix(".")
        entries = {key: entry for key, entry in entries.items() if not key.startswith(prefix)}
    return entries


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _missing(entries: Mapping[str, Entry], in_file: Collection[str]) -> list[str]:
    """Names of the model that the file lacks, except those tied to a name in the file and counts of batches."""
    loaded = {entry.memory for name, entry in entries.items() if name in in_file}
    missing = []
    for name, entry in entries.items():
        is_count = name.rpartition(".")[2] == _BATCH_COUNT
        if name not in in_file and entry.memory not in loaded and not is_count:
            missing.append(name)
    return missing


def _unexpected(model: nn.Module, in_file: Collection[str], in_model: Collection[str]) -> list[str]:
    """Names of the file that the model lacks, except buffers that are never saved."""
    buffers = {name for name, _ in model.named_buffers()}
    return [name for name in in_file if name not in in_model and name not in buffers]


def _wrong_shapes(shared: Iterable[str], in_file: Shapes, in_model: Shapes) -> list[str]:
    """Shared names with different shapes, and both shapes as text."""
    wrong = []
    for name in shared:
        given, wanted = in_file[name], in_model[name]
        if name.endswith(_EXTRA_STATE) or given is None or wanted is None:
            continue
        if given != wanted:
            wrong.append(f"{name} {given} for {wanted}")
    return wrong


def _raise_if_any(problems: Mapping[str, Sequence[str]], strict: bool) -> None:
    if not any(problems.values()):
        return
    message = "; ".join(f"{kind}: {listed(names, 20)}" for kind, names in problems.items() if names)
    if strict and not problems[_WRONG_SHAPE]:
        message += ". strict=False loads what agrees"
    raise CheckpointError(f"the checkpoint is for another architecture: {message}")
