"""Tensors that can be read but not written: the weights that layers return, and the cores of frozen models.

A value that is written to a computed weight would be lost, or would change a cached copy. Therefore every write raises
an error: in place, by ``out=``, ``_foreach_*``, ``.data``, through views or NumPy.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tnc.errors import WeightError

__all__ = ["Guarded", "read_only"]


class Guarded(Tensor):
    """An alias of a plain tensor that refuses every write. Results computed from it are plain tensors.

    It is made by `Guarded.of`. Its views, ``.data`` and ``.detach()`` are guarded too. A write through a raw pointer
    (``ctypes``) cannot be refused.

    Attributes
    ----------
    plain : Tensor
        The values, detached, in the same memory.
    advice : str
        The error message: why it cannot be written, and what to do instead.
    source : object, optional
        What a weight is computed from.

    Raises
    ------
    WeightError
        On any write.
    """

    # Torch does not use its fused kernels for subclasses with a __torch_function__. This one is disabled.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    _is_hf_initialized = True
    """Transformers does not initialize tensors with this attribute."""

    plain: Tensor
    advice: str
    source: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Guarded:
        """Refuse: tools call the class of a parameter to make a copy of it on another device."""
        raise WeightError(
            "a weight that cannot be written cannot be put elsewhere by hand: call tnc.nn.unfreeze(model) first if the "
            "model is frozen, or make it dense with tnc.nn.uninstall(model)"
        )

    @staticmethod
    def of(plain: Tensor, advice: str, source: Any = None) -> Guarded:
        """A guarded alias of `plain` in the same graph of autograd.

        Parameters
        ----------
        plain : Tensor
        advice : str
            Why it cannot be written, and what to do instead.
        source : object, optional
            What it is computed from.
        """
        alias = plain.as_subclass(Guarded)
        alias.plain, alias.advice, alias.source = plain.detach(), advice, source
        return alias

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        guarded: list[Guarded] = []
        tree_map_only(Guarded, guarded.append, (args, kwargs))
        if schema.is_mutable:
            for written in _written(schema, args, kwargs):
                written.refuse()
        args, kwargs = tree_map_only(Guarded, lambda x: x.plain, (args, kwargs))
        results = func(*args, **kwargs)
        returns_views = any(result.alias_info is not None for result in schema.returns)
        if not returns_views:
            return results
        base = guarded[0]
        return tree_map_only(Tensor, lambda x: x if isinstance(x, Guarded) else _view(x, base), results)

    def refuse(self) -> NoReturn:
        """Raise the error that says why it cannot be written."""
        raise WeightError(self.advice)

    @property
    def data(self) -> Tensor:
        return _view(self.plain, self)

    @data.setter
    def data(self, value: Tensor) -> None:
        self.refuse()

    @property
    def requires_grad(self) -> bool:
        return bool(Tensor.requires_grad.__get__(self))  # type: ignore[attr-defined]

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Refuse a change: only the cores can be told to require a gradient."""
        if bool(requires_grad) != self.requires_grad:
            self.refuse()
        return self

    def numpy(self, *, force: bool = False) -> Any:
        """The values as an array that cannot be written."""
        if self.requires_grad and not force:
            raise RuntimeError("a weight that requires a gradient has no array: call .detach().numpy()")
        array = self.plain.numpy(force=True)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.plain.tolist()

    def share_memory_(self) -> Tensor:
        self.refuse()

    def __array__(self, dtype: Any = None) -> Any:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError(f"{self.advice} To read it elsewhere, take a copy: .clone()")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy: of a frozen core a read-only parameter, of anything else a plain tensor."""
        copy = self._like(self.plain.clone())
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._is_frozen_core():
            return read_only, (self.plain.clone(), self.advice)
        plain: Any = self.plain.clone()
        return plain.__reduce_ex__(protocol)

    def __repr__(self, **options: Any) -> str:
        plain: Any = self.plain
        return str(plain.__repr__(**options))

    def _like(self, plain: Tensor) -> Tensor:
        """Other values, as a read-only parameter if this is one."""
        return read_only(plain, self.advice) if self._is_frozen_core() else plain

    def _is_frozen_core(self) -> bool:
        return bool(getattr(self, "_is_param", False))


def _written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Guarded]:
    """The guarded tensors that an operation of torch would write to."""
    written: list[Guarded] = []
    for k, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[k] if k < len(args) else kwargs.get(argument.name)
        values = value if isinstance(value, list | tuple) else [value]
        written += [x for x in values if isinstance(x, Guarded)]
    return written


def _view(plain: Tensor, base: Guarded) -> Guarded:
    """A guarded alias of a view of `base`."""
    view = Tensor._make_subclass(Guarded, plain, False)
    view.plain, view.advice, view.source = plain, base.advice, None
    return view


def read_only(plain: Tensor, advice: str) -> Any:
    """A parameter with the memory of `plain` that cannot be written; `advice` is the error message."""
    parameter = Tensor._make_subclass(Guarded, plain, False)
    parameter.plain, parameter.advice = plain, advice
    parameter._is_param = True  # torch takes tensors with this attribute for parameters
    return parameter
