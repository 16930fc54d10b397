"""`install`: put the weights of a checkpoint into a model. After an error the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnc.backends import get, move
from tnc.checkpoint import Checkpoint
from tnc.contract.cost import Device
from tnc.decomposition import Factorization
from tnc.errors import CheckpointError
from tnc.nn.layers import holder
from tnc.nn.layers.cores import Cores
from tnc.nn.runtime.lookup import look_up
from tnc.nn.runtime.schedule import check, lookup
from tnc.nn.surgery.adjust import adjusted
from tnc.nn.surgery.agreement import Agreement, find_agreement
from tnc.nn.surgery.attach import attach, runner_of, unchanged_on_error
from tnc.nn.surgery.inventory import Entry, pinned_name, state_of
from tnc.nn.surgery.meta import fill_meta_buffers
from tnc.nn.surgery.packing import PACKED, unpacked
from tnc.nn.surgery.parameters import factorizations, parameters
from tnc.nn.surgery.refusals import initialized, refuse_hidden
from tnc.nn.surgery.replace import kept

__all__ = ["install"]

Place = tuple[nn.Module, str]
"""A module and the name that one of its parameters has in it."""


class _Held(NamedTuple):
    """A tensor that a module held before loading."""

    tensors: dict[str, Any]
    """The parameters or the buffers of the module."""
    name: str
    tensor: Tensor


def install(model: nn.Module, checkpoint: Checkpoint, *, execution: str = "auto", strict: bool = True) -> nn.Module:
    """Put the weights of a checkpoint into a model: factorized weights as cores, all others as they are.

    A weight that is factorized in the checkpoint is not rebuilt on the way. All other entries go through
    ``model.load_state_dict``. A model on the meta device takes the checkpoint's own tensors.

    Parameters
    ----------
    model : torch.nn.Module
        Of the architecture that the checkpoint was made from. Factorized weights that it already has are replaced. If
        a parametrization of the model computes a weight that the checkpoint holds itself, the parametrization is
        removed.
    checkpoint : Checkpoint
    execution : {"auto", "dense", "factorized"}
        Rebuild a factorized weight, contract inputs with the cores, or whichever is cheaper for the batch.
    strict : bool
        Whether names that only the model or only the checkpoint has are an error, as in ``load_state_dict``.
        The checkpoint may lack a name that the model ties to a name in the checkpoint.

    Returns
    -------
    torch.nn.Module
        The same object; ``model.tnc_report`` is the `Report` of the compression.

    Raises
    ------
    CheckpointError
        Names or shapes do not agree. The message lists all of them, and the model is as it was.
    WeightError
        A parameter is not initialized yet, or is also held outside the module's parameters.
    """
    check(execution)
    initialized(model)
    agreement = find_agreement(model, checkpoint, strict)
    refuse_hidden(model, checkpoint)
    with torch.inference_mode(False), torch.no_grad(), unchanged_on_error(model):
        for name in agreement.computed:
            _remove_parametrization(model, name)
        _exchange_cores(model, checkpoint, agreement, execution)
        before = list(_held_tensors(model))
        _load_rest(model, checkpoint, agreement)
        fill_meta_buffers(model)
        adjusted(model)
        _put_back(before)  # from here on nothing can fail: values that are overwritten cannot be restored
        model.tnc_report = kept(model, checkpoint.report)  # type: ignore[assignment]
    return model


def _remove_parametrization(model: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    with torch.enable_grad():  # without it, torch would put a plain tensor in its place, not a parameter
        parametrize.remove_parametrizations(model.get_submodule(path), leaf)


# ------------------------------------------------------------- factorized weights


def _exchange_cores(model: nn.Module, checkpoint: Checkpoint, agreement: Agreement, execution: str) -> None:
    """Put cores where the checkpoint has cores, and empty parameters where only the model has cores."""
    for home, places in _places_by_weight(model, checkpoint, agreement).items():
        weight = checkpoint[home]
        if isinstance(weight, Factorization):
            _attach_everywhere(weight, places, _pinned_row(checkpoint, home), execution)
        else:
            _make_dense(places)


def _places_by_weight(model: nn.Module, checkpoint: Checkpoint, agreement: Agreement) -> dict[str, list[Place]]:
    """The places of every weight of the checkpoint: those that the checkpoint ties, and those that the model ties."""
    tied = _tied_places(model)
    by_weight: dict[str, list[Place]] = {}
    for name in agreement.shared:
        if name not in checkpoint:  # a packed value, which is loaded later
            continue
        places = by_weight.setdefault(checkpoint.aliases.get(name, name), [])
        entry = agreement.entries.get(name)
        if entry is None:  # a parametrization computed it until now
            path, _, leaf = name.rpartition(".")
            places.append((model.get_submodule(path), leaf))
        else:
            places += [place for place in tied.get(entry.memory, []) if place not in places]
    return by_weight


def _tied_places(model: nn.Module) -> dict[int, list[Place]]:
    """All places of every parameter and of all cores, by the identity of the parameter or of the cores."""
    tied: dict[int, list[Place]] = {}
    for name, parameter in parameters(model).items():
        path, _, leaf = name.rpartition(".")
        tied.setdefault(id(parameter), []).append((model.get_submodule(path), leaf))
    for _, module, leaf, cores in factorizations(model):
        tied.setdefault(id(cores), []).append((module, leaf))
    return tied


def _pinned_row(checkpoint: Checkpoint, home: str) -> Tensor | None:
    """The row of a table that is stored beside its cores, under any name of the table."""
    aliases = [alias for alias, target in checkpoint.aliases.items() if target == home]
    for name in (home, *aliases):
        if pinned_name(name) in checkpoint:
            row: Tensor = move(checkpoint[pinned_name(name)], get("torch"))
            return row
    return None


def _attach_everywhere(weight: Factorization, places: list[Place], pinned: Tensor | None, execution: str) -> None:
    """Put the cores of a weight in all these places; they share one set of cores."""
    cores: Cores | None = None
    for module, leaf in places:
        old = holder.cores_of(module, leaf)
        if old is not None and old is not cores:
            # `attach` replaces a parameter. This one has the shape of the weight and the memory of one number.
            stand_in = old.held()[0].new_empty(1).expand(old.shape)
            holder.detach(module, leaf, nn.Parameter(stand_in, old.trains))
        row = runner_of(module, leaf)._tnc_kept_row(module)
        if pinned is None and row is not None:
            pinned = _row_of(weight, row)
        if module._parameters.get(leaf) is None:  # a buffer, or replaced already under another name of the module
            continue
        cores = attach(module, leaf, weight, execution=execution, tied=cores, pinned=pinned)
        if old is not None:
            cores.layout = old.layout


def _row_of(table: Factorization, k: int) -> Tensor:
    """Row `k` of a factorized table; the table is rebuilt only if its network cannot be looked up by rows."""
    row: Tensor
    cores = [move(core, get("torch")) for core in table.cores]
    plan = lookup(table.network, "factorized", Device()).plan(1, False)
    if plan is None:
        row = Factorization(table.network, cores, table.shape).dense()[k]
    else:
        row = look_up(torch.tensor([k]), *cores, plan=plan, columns=prod(table.shape[1:]))[0]
    return row


def _make_dense(places: list[Place]) -> None:
    """Put parameters without values in place of cores; places that shared cores share a parameter."""
    dense: dict[int, nn.Parameter] = {}
    for module, leaf in places:
        cores = holder.cores_of(module, leaf)
        if cores is None:
            continue
        if id(cores) not in dense:
            dense[id(cores)] = nn.Parameter(cores.held()[0].new_empty(cores.shape), cores.trains)
        holder.detach(module, leaf, dense[id(cores)])


# ------------------------------------------------------------------ everything else


def _held_tensors(model: nn.Module) -> Iterator[_Held]:
    """The parameters and buffers of a model."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield _Held(tensors, name, tensor)


def _load_rest(model: nn.Module, checkpoint: Checkpoint, agreement: Agreement) -> None:
    """Load everything that is not factorized through ``load_state_dict``, which assigns tensors where it can."""
    state = dict(state_of(model))
    for name in agreement.shared:
        entry = agreement.entries.get(name)
        has_cores = isinstance(checkpoint.get(name), Factorization) and (entry is None or _is_weight(entry))
        if not has_cores:
            state[name] = _value(checkpoint, name, state.get(name))
    accepted = signature(model.load_state_dict).parameters
    options = {"assign": True} if "assign" in accepted else {}
    try:
        model.load_state_dict(state, strict=False, **options)
    except RuntimeError as error:
        raise CheckpointError(f"the model does not take the checkpoint: {error}") from error


def _is_weight(entry: Entry) -> bool:
    """Whether cores can replace it: it is a parameter, or has cores already."""
    return entry.cores is not None or isinstance(entry.value, nn.Parameter)


def _value(checkpoint: Checkpoint, name: str, old: object) -> Any:
    """The value to load under a name. If `old` is on the meta device, the value gets its dtype."""
    if name + PACKED in checkpoint:
        return unpacked(name, checkpoint[name + PACKED])
    value = checkpoint[name]
    if isinstance(value, Factorization):  # of a buffer, which cannot have cores
        value = value.dense()
    value = move(value, get("torch"))
    return value.to(old.dtype) if isinstance(old, Tensor) and old.is_meta else value


def _put_back(before: list[_Held]) -> None:
    """Put the earlier tensors back, with the values that were loaded: optimizers, among others, hold these objects.

    A tensor that cannot be overwritten stays replaced under all its names: on the meta device, made in inference mode,
    or of another shape.
    """
    loaded: dict[int, Tensor] = {}
    for tensors, name, old in before:
        new = tensors.get(name)
        if new is not old and isinstance(new, Tensor):
            loaded[id(old)] = new
    for tensors, name, old in before:
        if id(old) not in loaded:
            continue
        new = loaded[id(old)]
        if old.is_meta or old.is_inference() or old.shape != new.shape:
            tensors[name] = new
        else:
            old.copy_(new)
            tensors[name] = old
