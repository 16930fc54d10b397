"""`save` and `load`: write a whole model with factorized weights to one file, and read it back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn

from tnc.backends import get
from tnc.checkpoint import Checkpoint
from tnc.checkpoint import load as read
from tnc.decomposition import Factorization
from tnc.errors import CheckpointError
from tnc.nn.layers.cores import Cores
from tnc.nn.surgery.inventory import Entry, inventory, pinned_name
from tnc.nn.surgery.loading import install
from tnc.nn.surgery.packing import NO_VALUES, PACKED, packed, storable
from tnc.nn.surgery.replace import current

__all__ = ["load", "save"]


def save(model: nn.Module, path: Any) -> None:
    """Save a whole model with factorized weights to one ``.safetensors`` file, after fine-tuning too.

    Everything in ``model.state_dict()`` is written. Values that are no plain tensors (extra state, quantized or sparse
    tensors) are written too, without pickling.

    Parameters
    ----------
    model : torch.nn.Module
    path : str, Path or file object

    Raises
    ------
    CheckpointError
        The folder is missing or the file cannot be written; an old file survives. Or reading an entry back would need
        to run code from the file.
    """
    homes: dict[Hashable, str] = {}  # the first name of every memory; later names are aliases
    entries: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for name, entry in inventory(model).items():
        home = homes.setdefault(_memory(name, entry), name)
        if home == name:
            entries |= _stored(name, entry)
        else:
            aliases[name] = home
    report = current(model)
    methods = {row.name: row.method for row in report.rows} if report else {}
    Checkpoint(entries, methods=methods, aliases=aliases, report=report).save(path)


def _stored(name: str, entry: Entry) -> dict[str, Any]:
    """What a checkpoint holds for one entry of the model, by name."""
    if entry.cores is not None:
        stored: dict[str, Any] = {name: _factorization(name, entry.cores)}
        if (pinned := entry.cores.row_values) is not None:
            stored[pinned_name(name)] = pinned
        return stored
    if storable(entry.value):
        return {name: entry.value.detach().resolve_conj().resolve_neg()}
    return {name + PACKED: packed(name, entry.value)}


def _factorization(name: str, cores: Cores) -> Factorization:
    """The value of cores, if files can hold it."""
    factorization = cores.factorization()
    for core in factorization.cores:
        if core.is_meta:
            raise CheckpointError(NO_VALUES.format(name))
        if not storable(core) or not core.is_floating_point():
            raise CheckpointError(
                f"cannot save {name}: its cores are {str(core.dtype).removeprefix('torch.')}, and files hold float64, "
                "float32, float16 and bfloat16: cast the model first"
            )
    return factorization


def _memory(name: str, entry: Entry) -> Hashable:
    """A key that is equal for tied entries and different for all others."""
    if entry.cores is not None:
        return id(entry.cores)
    value = entry.value
    if storable(value) and value.numel() > 1:
        memory: Hashable = get("torch").memory(value.detach())
        return memory
    return name


def load(
    model: nn.Module, path: Any, *, execution: str = "auto", strict: bool = True, verify: bool = True
) -> nn.Module:
    """Load a file that `save` wrote into a new model of the same architecture.

    Parameters
    ----------
    model : torch.nn.Module
        A model on the meta device takes the tensors of the file; it needs no memory before.
    path : str, Path or file object
    execution : {"auto", "dense", "factorized"}
        As in `install`.
    strict : bool
        As in `install`.
    verify : bool
        Whether to check the file's digests.

    Returns
    -------
    torch.nn.Module
        The same object; ``model.tnc_report`` is the `Report` of the compression.

    Raises
    ------
    CheckpointError
        The file is no checkpoint, is damaged, or is of another architecture. The model is as it was.
    WeightError
        As in `install`.
    """
    return install(model, read(path, verify=verify), execution=execution, strict=strict)
