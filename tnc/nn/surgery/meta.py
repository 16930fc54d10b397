"""Buffers on the meta device that no file holds: compute them again, or name them in an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import CheckpointError, listed

__all__ = ["fill_meta_buffers"]

Initializer = Callable[[nn.Module], object]
"""``_init_weights`` of a model of transformers: it fills the parameters and buffers of one module."""


def fill_meta_buffers(model: nn.Module) -> None:
    """Give values to the buffers that are still on the meta device after a checkpoint was loaded.

    A count of batches starts at 0. A buffer inside a model of transformers is computed by that model's
    ``_init_weights``.

    Raises
    ------
    CheckpointError
        It is not known how to compute some of the buffers. The message lists them.
    """
    unfilled = []
    for path, module in model.named_modules():
        _start_counts(module)
        if meta := _meta_buffers(module):
            names = _not_initialized(module, meta, _initializer(model, path))
            unfilled += [f"{path}.{name}".removeprefix(".") for name in names]
    if unfilled:
        raise CheckpointError(
            f"buffers on the meta device that no file holds: {listed(unfilled, 20)}. Make the model where its buffers "
            "have values: on the CPU, or with accelerate.init_empty_weights(include_buffers=False)"
        )


def _meta_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of this module alone that have no values."""
    return {name: x for name, x in module._buffers.items() if x is not None and x.is_meta}


def _start_counts(module: nn.Module) -> None:
    """Set a count of batches that has no value to 0."""
    for name, x in _meta_buffers(module).items():
        if name == "num_batches_tracked":
            module._buffers[name] = torch.zeros_like(x, device="cpu")


def _not_initialized(module: nn.Module, meta: dict[str, Tensor], initialize: Initializer | None) -> list[str]:
    """Fill these buffers with `initialize`; return the names of those that it does not fill.

    It runs twice, from buffers of zeros and from buffers of ones. It has filled a buffer if both runs end with the
    same values.
    """
    if initialize is None:
        return list(meta)
    _protect_parameters(module)
    results = [_initialized_from(value, module, meta, initialize) for value in (0, 1)]
    return [name for name in meta if not torch.equal(results[0][name], results[1][name])]


def _protect_parameters(module: nn.Module) -> None:
    """Mark the parameters so that transformers does not initialize them again."""
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # an attribute of transformers


def _initialized_from(
    value: int, module: nn.Module, meta: dict[str, Tensor], initialize: Initializer
) -> dict[str, Tensor]:
    """Copies of the buffers after `initialize` has run on buffers that were full of `value`."""
    for name, x in meta.items():
        module._buffers[name] = torch.full(x.shape, value, dtype=x.dtype, device="cpu")
    initialize(module)
    results = {}
    for name in meta:
        buffer = module._buffers[name]
        assert buffer is not None
        results[name] = buffer.clone()
    return results


def _initializer(model: nn.Module, path: str) -> Initializer | None:
    """The ``_init_weights`` of the nearest model around the module at `path`, if one has it."""
    parts = path.split(".") if path else []
    for end in range(len(parts), -1, -1):
        around: Any = model.get_submodule(".".join(parts[:end]))
        if hasattr(around, "_init_weights"):
            initializer: Initializer = around._init_weights
            return initializer
    return None
