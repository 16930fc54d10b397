"""Put cores in place of a parameter of a module, and undo it.

`attach` puts cores in place of a parameter, and `detach` puts the parameter back. Registered layers get a class of
`tnc.nn.layers`. Recurrent layers pass rebuilt weights to torch's kernels. All other modules get the rebuilt weight
when they read their parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from tnc.backends import get, move
from tnc.decomposition import Factorization
from tnc.nn.layers import holder
from tnc.nn.layers.cores import Cores
from tnc.nn.layers.holder import Holder
from tnc.nn.layers.recurrent import Recurrent
from tnc.nn.layers.registry import factorized_class
from tnc.nn.runtime.formats import memory_format

__all__ = ["attach", "detach", "runner_of", "unchanged_on_error"]


def attach(
    module: nn.Module,
    name: str,
    factorization: Factorization,
    *,
    execution: str = "auto",
    tied: Cores | None = None,
    pinned: Tensor | None = None,
) -> Cores:
    """Put cores in place of the parameter `name` of `module`, keeping its mode, device, dtype and ``requires_grad``.

    Parameters
    ----------
    module : Module
    name : str
        The name of the parameter in the module.
    factorization : Factorization
        The factorization of the parameter.
    execution : {"auto", "dense", "factorized"}
        How the weight is used.
    tied : Cores, optional
        Cores that are attached already to a parameter tied to this one. They are shared.
    pinned : Tensor (columns,), optional
        Values of the row that does not come from the cores, such as the padding row of a table. By default the
        parameter's own row.

    Returns
    -------
    Cores
        The cores that are in place now.
    """
    dense = module._parameters[name]
    assert dense is not None
    runs = runner_of(module, name)
    row = runs._tnc_kept_row(module)
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be trained
        if tied is None:
            cores = [nn.Parameter(_tensor(core, dense), dense.requires_grad) for core in factorization.cores]
            placed = replace(factorization, cores=cores)
            tied = Cores(placed, layout=memory_format(dense)).train(module.training)
        if row is not None and tied.pinned is None:  # tied parameters have one value, so all of them have this row
            tied.row, tied.pinned = row, _row(dense if pinned is None else pinned[None], row, tied.held()[0])
    holder.place(module, name, tied, runs, execution)
    return tied


def runner_of(module: nn.Module, name: str) -> type[Holder]:
    """The class that runs a module whose parameter `name` is computed."""
    registered = factorized_class(module) if name == "weight" else None
    return runner(module) if registered is None else registered


@singledispatch
def runner(module: nn.Module) -> type[Holder]:
    """The class that runs a module of no registered kind, with computed parameters."""
    return Holder


@runner.register
def _(module: nn.RNNBase) -> type[Holder]:
    return Recurrent


def _tensor(core: Any, like: Tensor) -> Tensor:
    """A core as a torch tensor with the dtype of the weight `like`, on its device."""
    device = core.device if like.is_meta else like.device
    moved = move(core, get(f"torch:{device}")).detach()
    # In row-major order, as a file stores it: then a loaded model adds in the same order, and its outputs are equal.
    return moved.to(like.dtype, copy=True, memory_format=torch.contiguous_format)


def _row(table: Tensor, k: int, core: Tensor) -> Tensor:
    """Row `k` of a table, or its only row. It is zero, as in torch, where the table is on the meta device."""
    row = table.detach()[k if len(table) > 1 else 0]
    if row.is_meta:
        return torch.zeros_like(row, device=core.device, dtype=core.dtype)
    return row.to(core.device, core.dtype, copy=True)


def detach(module: nn.Module, name: str, dense: nn.Parameter | None) -> nn.Parameter:
    """Put the parameter `name` back in place of its cores. The module gets its earlier class again.

    Parameters
    ----------
    module : Module
    name : str
        The name of the parameter in the module.
    dense : Parameter or None
        The parameter; with None a new one that holds the rebuilt weight.

    Returns
    -------
    Parameter
        The parameter that is in place now.
    """
    if dense is None:
        cores = holder.cores_of(module, name)
        assert cores is not None
        with torch.inference_mode(False), torch.no_grad():
            weight = cores.rebuilt(*cores.held()).clone(memory_format=torch.preserve_format)
            dense = nn.Parameter(weight, cores.trains)
    holder.detach(module, name, dense)
    return dense


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """A context that restores every module after an error: class, parameters, submodules, attributes and hooks."""
    before = [
        (module, type(module), {k: copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, attributes in before:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
        raise
