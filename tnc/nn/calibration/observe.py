"""See every use of a weight while a model runs, whatever its modules are.

The observer looks at the operations of ATen, below all modules and functions. An operand that lies in the memory of a
parameter shows which weight is used, and which of its axes the operation sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tnc.nn.calibration.layout import Layout, View
from tnc.nn.calibration.operations import READERS, Use, light
from tnc.nn.calibration.weights import Weight

__all__ = ["Observer"]

_COPIES = ("_to_copy", "clone")
"""Operations whose result has the values of their operand in another place."""


class Observer(TorchDispatchMode):
    """A context in which uses of weights are reported, in order of the forward pass.

    Parameters
    ----------
    weights : iterable of Weight
    see : callable
        ``see(use)`` is called before the operation runs. It must read the inputs at once, because the model may write
        to them afterwards. An error that it raises ends the pass.
    gradients : bool
        Whether to keep the places in the graph of autograd where gradients at outputs arrive.

    Attributes
    ----------
    places : list of (Use, GradientEdge)
        Filled if `gradients` is set. No tensor is kept by it.
    """

    def __init__(self, weights: Iterable[Weight], see: Callable[[Use], None], *, gradients: bool = False) -> None:
        super().__init__()
        self._see, self._gradients = see, gradients
        self._known: dict[int, list[tuple[Weight, Layout]]] = {}
        self._held: dict[int, StorageWeakRef] = {}
        for weight in weights:
            self._known.setdefault(_storage(weight.parameter), []).append((weight, weight.layout()))
        self._pending: list[tuple[Tensor, list[Use]]] = []
        self.places: list[tuple[Use, GradientEdge]] = []

    def __enter__(self) -> Self:
        """Begin to observe. Copies of weights that autocast has kept from another pass are dropped."""
        torch.clear_autocast_cache()
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Read the operation, then run it."""
        self.settle()
        kwargs = kwargs or {}
        if _is_composite(func):  # in inference mode such operations arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket.__name__
        reader = READERS.get(name if name in READERS else name.rstrip("_"))
        uses = []
        if reader is not None:
            with torch.no_grad():
                for use in reader(self._find, *args, **_named(kwargs)):
                    self._see(use)
                    uses.append(use)
        out = func(*args, **kwargs)
        if name in _COPIES:
            self._follow(args[0], out)
        if uses and self._gradients:
            self._pending.append((out[0] if isinstance(out, tuple) else out, uses))
        return out

    def settle(self) -> None:
        """Note where the gradients of the last operations arrive.

        Autograd gives an output its node after the operation has run, and another one if it is changed in place later.
        So the node is read between the two: before the next operation.
        """
        for out, uses in self._pending:
            if out.grad_fn is not None:
                edge = get_gradient_edge(out)
                self.places += [(light(use), edge) for use in uses if use.arrange is not None]
        self._pending.clear()

    def _find(self, x: Any) -> tuple[Weight, View] | None:
        """The weight that a tensor shows."""
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            return None
        for weight, layout in self._known.get(_storage(x), ()):
            if (view := layout.view(x.shape, x.stride(), int(x.storage_offset()))) is not None:
                return weight, view
        return None

    def _follow(self, x: Tensor, copy: Tensor) -> None:
        """Know a copy of a weight, too. The weak reference lets its memory go, but no other memory gets its number."""
        if copy.layout is torch.strided and copy.is_floating_point() and (found := self._find(x)) is not None:
            weight, view = found
            parts = next(layout for known, layout in self._known[_storage(x)] if known is weight)
            key = _storage(copy)
            self._held[key] = StorageWeakRef(copy.untyped_storage())
            self._known[key] = [(weight, parts.copied(view, copy.stride(), int(copy.storage_offset())))]


def _storage(x: Tensor) -> int:
    """A number of the memory of a tensor."""
    return int(x.untyped_storage()._cdata)


def _named(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Named arguments that a reader needs: where the rows of each expert end."""
    return {"ends": kwargs["offs"]} if "offs" in kwargs else {}


@lru_cache(maxsize=4096)
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
