"""How each operation of torch uses its operands: products of matrices, convolutions and lookups.

There is one reader per kind of operation, and none per kind of module: whatever a module is, it computes with these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tnc.nn.calibration.layout import View
from tnc.nn.calibration.patches import Geometry
from tnc.nn.calibration.weights import Product, Weight

__all__ = ["READERS", "Find", "Use", "light"]

Find: TypeAlias = Callable[[Any], "tuple[Weight, View] | None"]
"""Which weight a tensor shows."""


@dataclass(frozen=True)
class Use:
    """One use of a weight in a forward pass.

    Attributes
    ----------
    weight : Weight
    x : Tensor
        Input vectors, (matrix, vector, input), or (matrix, vector, channel, position of the kernel); or the images of a
        convolution; or the numbers of the rows looked up.
    arrange : callable
        Makes (matrix, vector, output) of the gradient at the output. None where outputs cannot be told apart.
    straight : bool
        Whether inputs meet the columns. Otherwise they meet the rows, as those of a lookup do.
    start : int
        The first input that takes part.
    members : tuple of int
        The matrices that take part.
    shared : bool
        Whether these matrices have the same inputs.
    matrices : int
        Number of all matrices: of a stack, or the groups of a convolution.
    outputs : int
        The first output that takes part.
    geometry : Geometry, optional
        Of a convolution.
    lookup : bool
    share : float
        The share of the outputs that this use computes. Each input vector counts by this share, so that it counts once
        in all if the outputs are computed in several parts.
    """

    weight: Weight
    x: Tensor
    arrange: Callable[[Tensor], Tensor] | None = None
    straight: bool = True
    start: int = 0
    members: tuple[int, ...] = (0,)
    shared: bool = True
    matrices: int = 1
    outputs: int = 0
    geometry: Geometry | None = None
    lookup: bool = False
    share: float = 1.0


def light(use: Use) -> Use:
    """The same without its inputs, whose memory is needed no more."""
    return replace(use, x=use.x.new_empty(0))


# ------------------------------------------------------------------- products


def _product(find: Find, a: Tensor, b: Tensor) -> Iterator[Use]:
    """Uses in ``a @ b``, for matrices or batches of matrices. Either operand may be a weight."""
    batch = 0 if a.ndim == 3 else None
    if (found := find(b)) is not None:
        weight, view = found
        if (product := weight.product(view, b.ndim - 2, b.ndim - 1, batch)) is not None:
            yield _used(weight, product, a, lambda g: g)
    if (found := find(a)) is not None:
        weight, view = found
        if (product := weight.product(view, a.ndim - 1, a.ndim - 2, batch)) is not None:
            yield _used(weight, product, b.mT, lambda g: g.mT)


def _used(weight: Weight, product: Product, x: Tensor, turned: Callable[[Tensor], Tensor]) -> Use:
    """A use in a product of whole batches. `turned` brings the gradient to (..., vector, output)."""

    def arrange(g: Tensor) -> Tensor:
        return _by_matrix(_stacked(turned(g), product), product)

    kernel = prod(weight.sizes[k] for k in weight.kernel)
    vectors = _stacked(x, product)
    if kernel > 1:  # patches that the model unfolds itself
        vectors = vectors.unflatten(-1, (-1, kernel))
    return _use(weight, product, vectors, arrange, product.members)


def _use(
    weight: Weight, product: Product, x: Tensor, arrange: Callable[[Tensor], Tensor], members: tuple[int, ...]
) -> Use:
    """A use in a product by some of its matrices."""
    first, count = product.outputs or (0, weight.sizes[weight.axis(not product.straight)])
    return Use(
        weight,
        x,
        None if product.outputs is None else arrange,
        straight=product.straight,
        start=product.start,
        members=members,
        shared=product.shared,
        matrices=weight.matrices,
        outputs=first,
        share=count / weight.sizes[weight.axis(not product.straight)],
    )


def _stacked(x: Tensor, product: Product) -> Tensor:
    """A batch of matrices as (matrix of the weight, vector, entry)."""
    own = product.own
    if x.ndim == 2 or not own:
        return x.reshape(1, -1, x.shape[-1])
    parts = x.reshape(*product.batch, *x.shape[1:])
    count = len(product.batch)
    order = [*own, *(k for k in range(count) if k not in own), count, count + 1]
    return parts.permute(order).reshape(len(product.members), -1, x.shape[-1])


def _by_matrix(g: Tensor, product: Product) -> Tensor:
    """Outputs of several matrices with the same inputs, one matrix after another."""
    if not product.shared or len(product.members) == 1:
        return g
    return g[0].reshape(g.shape[1], len(product.members), -1).movedim(1, 0)


def _mm(find: Find, a: Tensor, b: Tensor, *_: Any) -> Iterator[Use]:
    return _product(find, a, b)


def _addmm(find: Find, _: Tensor, a: Tensor, b: Tensor, *__: Any) -> Iterator[Use]:
    return _product(find, a, b)


def _mv(find: Find, a: Tensor, x: Tensor, *_: Any) -> Iterator[Use]:
    if (found := find(a)) is not None:
        weight, view = found
        if (product := weight.product(view, 1, 0)) is not None:
            yield _used(weight, product, x[None], lambda g: g[None])


def _addmv(find: Find, _: Tensor, a: Tensor, x: Tensor, *__: Any) -> Iterator[Use]:
    return _mv(find, a, x)


def _grouped(find: Find, a: Tensor, b: Tensor, ends: Tensor | None = None, *_: Any) -> Iterator[Use]:
    """Uses in a product of consecutive rows of `a` with one matrix each: how experts see the tokens routed to them."""
    if a.ndim != 2 or ends is None or (found := find(b)) is None:
        return
    weight, view = found
    product = weight.product(view, 1, 2, 0)
    if product is None or len(product.own) != len(product.batch) or len(product.members) != len(ends):
        return
    first = 0
    for member, last in zip(product.members, ends.tolist(), strict=True):
        if last > first:
            part = slice(first, last)
            yield _use(weight, product, a[None, part], lambda g, part=part: g[None, part], (member,))
        first = last


# --------------------------------------------------------------- convolutions


def _convolution(find: Find, x: Tensor, kernel: Tensor, _: Any, *numbers: Any) -> Iterator[Use]:
    """The use of a kernel. A transposed convolution maps the vector of channels at each position."""
    stride, padding, dilation, transposed, _, groups = numbers[:6]
    found = find(kernel)
    if found is None:
        return
    weight, view = found
    if not _is_whole(weight, view, kernel, transposed) or weight.matrices not in (1, groups):
        return
    if transposed:
        geometry = Geometry.pointwise(x.ndim - 2, groups)
    else:
        geometry = Geometry.read(kernel.shape[2:], (stride, padding, dilation), groups)
    yield Use(
        weight,
        x,
        lambda g: g.movedim(1, -1).reshape(-1, groups, g.shape[1] // groups).movedim(1, 0),
        members=tuple(range(groups)),
        shared=False,
        matrices=groups,
        geometry=geometry,
    )


def _is_whole(weight: Weight, view: View, kernel: Tensor, transposed: bool) -> bool:
    """Whether a kernel is the whole weight, with rows and columns where a convolution has them."""
    if kernel.numel() != weight.parameter.numel():
        return False
    first, second = ([part.axis for part in axis] for axis in view.axes[:2])
    return {*first} <= {*weight.lead, weight.axis(transposed)} and {*second} <= {weight.axis(not transposed)}


# -------------------------------------------------------------------- lookups


def _lookup(find: Find, table: Tensor, numbers: Tensor, *_: Any) -> Iterator[Use]:
    """A lookup of rows. The gradient at its output is on the columns."""
    found = find(table)
    if found is None or table.ndim != 2:
        return
    weight, view = found
    rows, columns = weight.axis(False), weight.axis(True)
    first, second = ([part.axis for part in axis] for axis in view.axes)
    if not {*first} <= {rows} or not {*second} <= {columns} or weight.matrices > 1:
        return
    yield Use(
        weight,
        numbers.reshape(-1) + view.fixed[rows],
        lambda g: g.reshape(1, -1, g.shape[-1]),
        straight=False,
        outputs=view.fixed[columns],
        lookup=True,
    )


def _index(find: Find, table: Tensor, numbers: list[Tensor | None], *_: Any) -> Iterator[Use]:
    whole = (torch.int64, torch.int32)
    if len(numbers) == 1 and numbers[0] is not None and numbers[0].dtype in whole:
        yield from _lookup(find, table, numbers[0] % table.shape[0])


def _index_select(find: Find, table: Tensor, axis: int, numbers: Tensor, *_: Any) -> Iterator[Use]:
    if axis in (0, -table.ndim):
        yield from _lookup(find, table, numbers)


READERS: dict[str, Callable[..., Iterator[Use]]] = {
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "_addmm_activation": _addmm,
    "baddbmm": _addmm,
    "mv": _mv,
    "addmv": _addmv,
    "_grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
    "convolution": _convolution,
    "_convolution": _convolution,
    "embedding": _lookup,
    "_embedding_bag": _lookup,
    "_embedding_bag_forward_only": _lookup,
    "index": _index,
    "index_select": _index_select,
}
"""Readers by the name of the operation of ATen, without the underscore of one in place."""
