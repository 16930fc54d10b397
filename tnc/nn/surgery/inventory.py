"""The entries of a model's state dict by the names of the dense model: a factorized weight is one entry.

Everything is read from ``state_dict``. Thus hooks, extra state, wrappers that rename entries, and modules that override
``state_dict`` take part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tnc.nn.layers.cores import Cores
from tnc.nn.layers.holder import PREFIX, factorized

__all__ = ["Entry", "inventory", "is_pinned", "pinned_name", "state_of"]

_CORE = re.compile(rf"(?P<at>(?:.*\.)?){PREFIX}(?P<leaf>[^.]+)\.(?P<rest>.+)")
"""The name of a core in a state dict: the module's path with a final dot, the weight's name, the core's name."""

Owner = tuple[nn.Module | None, str]
"""The module that holds a tensor, if it is known, and the name of the tensor in it."""


@dataclass
class Entry:
    """One entry of the dense model's state dict.

    Attributes
    ----------
    value : object
        What the state dict holds; None for a factorized weight.
    module : Module, optional
        The module that holds this parameter, buffer or factorized weight, if it is known.
    leaf : str
        The name in that module.
    cores : Cores, optional
        The cores of a factorized weight.
    keys : list of str
        The names in the present state dict. A factorized weight has one for each of its cores.
    """

    value: Any = None
    module: nn.Module | None = None
    leaf: str = ""
    cores: Cores | None = None
    keys: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the weight; None if the value is no tensor."""
        if self.cores is not None:
            return tuple(self.cores.shape)
        return tuple(self.value.shape) if isinstance(self.value, Tensor) else None

    @property
    def memory(self) -> int:
        """An identity that tied weights share."""
        return id(self.value if self.cores is None else self.cores)


def state_of(model: nn.Module) -> Mapping[str, Any]:
    """The state dict of a model, with the parameters themselves if the model allows it."""
    try:
        return model.state_dict(keep_vars=True)
    except TypeError:  # the method is overridden, without torch's arguments
        return model.state_dict()


def inventory(model: nn.Module) -> dict[str, Entry]:
    """The entries of a model's state dict, by name and in order; the cores of a weight are joined to one entry."""
    owners, cores_by_tensor = _owners(model), _cores_by_tensor(model)
    paths = dict(model.named_modules(remove_duplicate=False))
    entries: dict[str, Entry] = {}
    for key, value in state_of(model).items():
        match = _CORE.fullmatch(key)
        if match is not None:
            path, leaf = match["at"].rstrip("."), match["leaf"]
            cores = cores_by_tensor.get(id(value)) or _cores_at(paths, path, leaf)
            if cores is not None:
                name = match["at"] + leaf
                if name not in entries:
                    entries[name] = Entry(None, _holder(model, paths.get(path), leaf, cores), leaf, cores)
                entries[name].keys.append(key)
                continue
        entries[key] = _dense_entry(paths, owners, key, value)
    return entries


def _dense_entry(paths: Mapping[str, nn.Module], owners: Mapping[int, Owner], key: str, value: Any) -> Entry:
    """The entry of a parameter, a buffer or extra state."""
    if id(value) not in owners:
        value = _original(paths, key, value)
    module, leaf = owners.get(id(value), (None, key.rpartition(".")[2]))
    return Entry(value, module, leaf, keys=[key])


def _owners(model: nn.Module) -> dict[int, Owner]:
    """For every parameter and buffer, by identity, a module that holds it and its name there."""
    return {
        id(value): (module, name)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, value in tensors.items()
        if value is not None
    }


def _cores_by_tensor(model: nn.Module) -> dict[int, Cores]:
    """The cores that a tensor belongs to, by the identity of the tensor."""
    return {
        id(value): cores
        for module in model.modules()
        for _, cores in factorized(module)
        for value in (*cores.parameters(), *cores.buffers())
    }


def _original(paths: Mapping[str, nn.Module], key: str, value: Any) -> Any:
    """The parameter or buffer of this name if `value` is another tensor over the same memory; else `value`."""
    path, _, leaf = key.rpartition(".")
    module = paths.get(path)
    if module is None or not isinstance(value, Tensor):
        return value
    original = module._parameters.get(leaf, module._buffers.get(leaf))
    if original is None or not _share_memory(original, value):
        return value
    return original


def _share_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two strided tensors have the same shape and the same memory."""
    if first.layout != torch.strided or second.layout != torch.strided or first.is_meta:
        return False
    return first.shape == second.shape and first.data_ptr() == second.data_ptr()


def _cores_at(paths: Mapping[str, nn.Module], path: str, leaf: str) -> Cores | None:
    """The cores of the weight `leaf` of the module at `path`."""
    module = paths.get(path)
    return None if module is None else dict(factorized(module)).get(leaf)


def _holder(model: nn.Module, candidate: nn.Module | None, leaf: str, cores: Cores) -> nn.Module:
    """The module whose weight `leaf` has these cores: `candidate`, or another one if a wrapper changed the path."""
    if candidate is not None and dict(factorized(candidate)).get(leaf) is cores:
        return candidate
    return next(module for module in model.modules() if dict(factorized(module)).get(leaf) is cores)


def is_pinned(name: str) -> bool:
    """Whether an entry of a file is the padding row of a factorized embedding. Dense models have no such entry."""
    return name.endswith("cores.pinned")


def pinned_name(name: str) -> str:
    """The name in a file of the padding row of the table `name`."""
    path, dot, _ = name.rpartition(".")
    return f"{path}{dot}cores.pinned"
