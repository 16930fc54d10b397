"""The weights of a model that are observed, with the roles of their axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from tnc.errors import MatchError, closest, listed
from tnc.nn.calibration.layout import REPEATED, Layout, Part, View
from tnc.nn.layers.cores import Cores
from tnc.nn.layers.roles import roles_of
from tnc.roles import AxisRoles

__all__ = ["Product", "Weight", "weights"]


@dataclass(frozen=True)
class Product:
    """How a product of matrices uses a weight.

    Attributes
    ----------
    straight : bool
        Whether the product runs over the columns. Otherwise it runs over the rows.
    start : int
        The first column (or row) that takes part.
    members : tuple of int
        The matrices of a stack that take part. A weight without a stack has one matrix, number 0.
    shared : bool
        Whether all these matrices get the same inputs.
    batch : tuple of int
        Sizes of the parts of the batch axis.
    own : tuple of int
        Positions in `batch` of the parts that count matrices.
    outputs : tuple of int, optional
        Where the axis of outputs begins and how long it is. None if it has something else in it.
    """

    straight: bool
    start: int
    members: tuple[int, ...]
    shared: bool
    batch: tuple[int, ...]
    own: tuple[int, ...]
    outputs: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter and the roles of its axes.

    Attributes
    ----------
    name : str
        The first name of the parameter in the model.
    parameter : Parameter
    roles : AxisRoles
    """

    name: str
    parameter: nn.Parameter
    roles: AxisRoles

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The role of each axis. Two roles on one axis of the parameter are two axes here."""
        return self.roles.split(tuple(self.parameter.shape))[0]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The size of each of these axes."""
        return self.roles.split(tuple(self.parameter.shape))[1]

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes that count matrices: stacks and groups."""
        return tuple(k for k, word in enumerate(self.words) if word in ("stack", "group"))

    @property
    def matrices(self) -> int:
        """Number of matrices in the stack, or of groups."""
        return prod(self.sizes[k] for k in self.lead)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Axes of the kernel."""
        return tuple(k for k, word in enumerate(self.words) if word == "kernel")

    def axis(self, straight: bool) -> int:
        """The axis of the inputs: the columns, or the rows where the weight is used transposed."""
        return self.words.index("columns" if straight else "rows")

    def layout(self) -> Layout:
        """Where the values are now."""
        strides: list[int] = []
        lengths = zip(self.roles.axes, self.parameter.shape, self.parameter.stride(), strict=True)
        for axis, length, stride in lengths:
            strides += [stride * (length // axis.size), stride] if len(axis.names) == 2 else [stride]
        return Layout.of(self.sizes, strides, int(self.parameter.storage_offset()))

    def product(self, view: View, inputs: int, outputs: int, batch: int | None = None) -> Product | None:
        """How a product of matrices uses the weight; None if it mixes roles.

        Parameters
        ----------
        view : View
            What the operand of the product shows.
        inputs : int
            The axis of the operand that the product sums over.
        outputs : int
            Its other axis.
        batch : int, optional
            Its axis of a batch.
        """
        many, free = view.axes[batch] if batch is not None else (), view.axes[outputs]
        found = self._inputs(view, inputs, [part.axis for part in (*free, *many)])
        members = self._members(many, free, view.fixed)
        if found is None or members is None:
            return None
        own = tuple(k for k, part in enumerate(many) if part.axis != REPEATED)
        sizes = tuple(part.length for part in many)
        outs = self._outputs(free, self.axis(not found[0]), view.fixed)
        return Product(*found, members, not own, sizes, own, outs)

    def _inputs(self, view: View, axis: int, others: list[int]) -> tuple[bool, int] | None:
        """Whether the sum runs over the columns or the rows, and where it begins; None if over anything else."""
        run, columns, rows = view.axes[axis], self.axis(True), self.axis(False)
        long = [k for k in (columns, *self.kernel) if self.sizes[k] > 1]
        axes = [part.axis for part in run]
        if {*long} - {columns}:
            whole = axes == long and all(part.length == self.sizes[part.axis] for part in run)
            return (True, 0) if whole else None
        if not axes:  # one column or one row
            axes = [k for k in (columns, rows) if k not in others][:1]
        if axes not in ([columns], [rows]):
            return None
        return axes == [columns], run[0].start if run else view.fixed[axes[0]]

    def _outputs(self, free: Sequence[Part], axis: int, fixed: dict[int, int]) -> tuple[int, int] | None:
        """Where the outputs begin and how many there are; None if the free axis has anything but matrices and them."""
        rest = [part for part in free if part.axis not in self.lead]
        is_last = list(free[len(free) - len(rest) :]) == rest
        if not is_last or [part.axis for part in rest] not in ([axis], []):
            return None
        return fixed[axis], rest[0].length if rest else 1

    def _members(self, many: Sequence[Part], free: Sequence[Part], fixed: dict[int, int]) -> tuple[int, ...] | None:
        """Numbers of the matrices that take part: those that the batch counts, or else the free axis."""
        own = [part for part in many if part.axis != REPEATED]
        beside = [part for part in free if part.axis in self.lead]
        parts = own or beside
        axes = [part.axis for part in parts]
        if (own and beside) or axes != sorted(axes) or not {*axes} <= {*self.lead}:
            return None
        return self._numbers(parts, fixed)

    def _numbers(self, parts: Sequence[Part], fixed: dict[int, int]) -> tuple[int, ...]:
        """Numbers of the matrices in these ranges."""
        ranges = {k: slice(fixed[k], fixed[k] + 1) for k in self.lead}
        ranges |= {part.axis: slice(part.start, part.start + part.length) for part in parts}
        numbers = np.arange(self.matrices).reshape([self.sizes[k] for k in self.lead])
        return tuple(numbers[tuple(ranges[k] for k in self.lead)].reshape(-1).tolist())


def weights(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Weight]:
    """The dense weights of a model by name. A tied parameter has its first name, whichever of its names is given.

    Cores are left out, and so is what a parametrization computes a weight from.

    Raises
    ------
    MatchError
        There is no such weight.
    """
    known = _all(model)
    if names is None:
        return known
    first = {id(weight.parameter): name for name, weight in known.items()}
    every = dict(model.named_parameters(remove_duplicate=False))
    chosen = {}
    for name in [names] if isinstance(names, str) else names:
        if name not in every or id(every[name]) not in first:
            raise MatchError(
                f"{name!r} is no dense weight of two axes or more in the model: it has {listed(known)}."
                + closest(name, known)
            )
        chosen[first[id(every[name])]] = known[first[id(every[name])]]
    return chosen


def _all(model: nn.Module) -> dict[str, Weight]:
    """All dense weights."""
    inside = {id(module) for module in model.modules() if isinstance(module, Cores | ParametrizationList)}
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = {} if id(module) in inside else dict(module.named_parameters(recurse=False))
        for leaf, parameter in own.items():
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            if (roles := roles_of(module, leaf, tuple(parameter.shape))) is not None:
                name = f"{path}.{leaf}" if path else leaf
                found[name] = Weight(name, parameter, roles)
    return found
