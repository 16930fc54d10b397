"""The roles of the axes of a module's parameters.

A module can state the roles of its own parameters, in a mapping ``tnc_roles`` from names to roles::

    class Experts(nn.Module):
        tnc_roles = {"weight": "stack columns rows"}
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from torch import nn

from tnc.errors import WeightError
from tnc.roles import AxisRoles

__all__ = ["roles_of", "stated"]

_TRANSPOSED = {
    ("transformers.pytorch_utils", "Conv1D", "weight"): "columns rows",
    ("transformers.models.llama4.modeling_llama4", "Llama4TextExperts", "gate_up_proj"): "stack columns rows",
    ("transformers.models.llama4.modeling_llama4", "Llama4TextExperts", "down_proj"): "stack columns rows",
}
"""Roles of parameters of other libraries that are stored transposed: by Python module, class and parameter."""


def roles_of(module: nn.Module, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    """The roles of the axes of a parameter.

    Parameters
    ----------
    module : torch.nn.Module
    name : str
        Name of the parameter in the module.
    shape : tuple of int
        Shape of the parameter.

    Returns
    -------
    AxisRoles or None
        None for a parameter of fewer than two axes.

    Raises
    ------
    WeightError
        The module states roles that are not understood, or that do not fit the shape.
    """
    if len(shape) < 2:
        return None
    own = getattr(module, "tnc_roles", {})
    try:
        if name in own:
            roles = AxisRoles(own[name])
            roles.split(shape)
            return roles
    except WeightError as error:
        raise WeightError(f"{type(module).__name__}.tnc_roles[{name!r}]: {error}") from error
    for kind in type(module).__mro__:
        if (words := _TRANSPOSED.get((kind.__module__, kind.__name__, name))) is not None:
            return AxisRoles(words)
    return stated(module, name, shape)


@singledispatch
def stated(module: nn.Module, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    """The roles of a parameter's axes, by the kind of module.

    In an unknown module, three axes are assumed to be a stack of matrices. The experts of the library transformers say
    with ``is_transposed`` whether they are stored as (stack, in, out).

    Parameters
    ----------
    module : torch.nn.Module
    name : str
        Name of the parameter in the module.
    shape : tuple of int
        Shape of the parameter, of two axes or more.

    Returns
    -------
    AxisRoles or None
        None where the parameter cannot be factorized.
    """
    if len(shape) == 2:
        return AxisRoles("rows columns")
    if len(shape) == 3 and not hasattr(module, "kernel_size"):
        transposed: Any = getattr(module, "is_transposed", None)
        roles = "stack columns rows" if transposed is True else "stack rows columns"
        return AxisRoles(roles, assumed=transposed is None)
    return AxisRoles(" ".join(["rows columns", *["kernel"] * (len(shape) - 2)]), assumed=True)


@stated.register(nn.Conv1d)
@stated.register(nn.Conv2d)
@stated.register(nn.Conv3d)
def _(module: Any, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    return _convolution("rows", "columns", module.groups, shape)


@stated.register(nn.ConvTranspose1d)
@stated.register(nn.ConvTranspose2d)
@stated.register(nn.ConvTranspose3d)
def _(module: Any, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    return _convolution("columns", "rows", module.groups, shape)


def _convolution(first: str, second: str, groups: int, shape: tuple[int, ...]) -> AxisRoles:
    """Roles of a kernel. Groups with one input or output channel are too small to be factorized separately."""
    if groups > 1 and min(shape[0] // groups, shape[1]) > 1:
        first = f"(group={groups} {first})"
    return AxisRoles(" ".join([first, second, *["kernel"] * (len(shape) - 2)]))


@stated.register
def _(module: nn.Bilinear, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    return AxisRoles("stack rows columns")


@stated.register
def _(module: nn.MultiheadAttention, name: str, shape: tuple[int, ...]) -> AxisRoles | None:
    if name == "in_proj_weight":  # the matrices of queries, keys and values, stacked along the rows
        return AxisRoles("(stack=3 rows) columns")
    return AxisRoles("rows columns") if len(shape) == 2 else None
