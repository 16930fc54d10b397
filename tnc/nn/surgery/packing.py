"""Pack values that are no plain arrays into one array of bytes: extra state, quantized, sparse and 8-bit tensors.

A value is split into plain arrays and a tree in JSON that says how they belong together. Both are written to a small
safetensors file in memory, whose bytes are the packed value. Nothing is pickled, so that reading runs no code from the
file.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tnc import storage
from tnc.backends import get
from tnc.errors import CheckpointError

__all__ = ["NO_VALUES", "PACKED", "packed", "storable", "unpacked"]

PACKED = "::packed"
"""The end of the name of a packed entry in a file."""

_FLOATS = torch.float64, torch.float32, torch.float16, torch.bfloat16
_STORED = frozenset(
    (*_FLOATS, torch.bool, torch.complex64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)
"""The dtypes that entries of a file may have."""

NO_VALUES = (
    "cannot save {}: it is on the meta device and has no values. Load them first; or if accelerate has put them "
    "elsewhere, call accelerate.hooks.remove_hook_from_module(model, recurse=True)"
)

_TREE = "tnc.packed"
"""The key of the tree in the metadata of the small file."""

_DEEPEST = 50
"""The deepest nesting of lists, tuples and dicts that is packed."""

Tensors = list[Tensor]
Node = list[Any]
"""One node of the tree: the kind of a value, and then what is needed to build it again."""


def storable(value: Any) -> bool:
    """Whether a value is a plain array of numbers, with a dtype that files can hold."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.dtype in _STORED and not _is_wrapper(value) and not value.is_meta


def _is_wrapper(x: Tensor) -> bool:
    """Whether a tensor is of a subclass that computes its values from other tensors."""
    return type(x) not in (Tensor, nn.Parameter) and hasattr(x, "__tensor_flatten__")


def packed(name: str, value: Any) -> np.ndarray:
    """Pack a value into an array of bytes, ``uint8[n]``.

    Raises
    ------
    CheckpointError
        The value is on the meta device, or holds something that is neither data nor a tensor.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise CheckpointError(NO_VALUES.format(name))
    tensors: Tensors = []
    try:
        tree = _split(value, tensors, 0)
    except TypeError as error:
        raise CheckpointError(
            f"cannot save {name}: it holds {error}, which is read back only by running code. Let the module's "
            "get_extra_state return tensors, numbers, strings, and lists, tuples and dicts of these"
        ) from None
    file = BytesIO()
    arrays = {str(k): get("torch").to_numpy(x) for k, x in enumerate(tensors)}
    narrow = frozenset(str(k) for k, x in enumerate(tensors) if x.dtype == torch.bfloat16)
    storage.write(file, arrays, {_TREE: json.dumps(tree)}, narrow)
    return np.frombuffer(file.getvalue(), np.uint8)


def unpacked(name: str, data: Any) -> Any:
    """The value of an array of bytes that `packed` made.

    Raises
    ------
    CheckpointError
        The bytes are no packed value.
    """
    try:
        arrays, header, narrow = storage.read(BytesIO(np.asarray(data, np.uint8).tobytes()))
        tensors = [get("torch").from_numpy(arrays[str(k)]) for k in range(len(arrays))]
        tensors = [x.bfloat16() if str(k) in narrow else x for k, x in enumerate(tensors)]
        return _built(json.loads(header[_TREE]), tensors)
    except (CheckpointError, KeyError, IndexError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------- splitting


def _split(value: Any, tensors: Tensors, depth: int) -> Node:
    """The node for a value; its plain arrays are appended to `tensors`, and the node has their numbers.

    Raises
    ------
    TypeError
        The value is of a type that cannot be packed, or is nested too deep.
    """
    if depth > _DEEPEST:
        raise TypeError(f"data nested more than {_DEEPEST} deep")
    if value is None or type(value) in (bool, int, float, str):
        return ["value", value]
    if isinstance(value, Tensor):
        return _split_tensor(value.detach(), tensors)
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if type(value) is bytes:
        return ["bytes", value.hex()]
    kind = type(value).__name__
    if type(value) in _SEQUENCES:
        return [kind, [_split(x, tensors, depth + 1) for x in value]]
    if type(value) in _MAPPINGS:
        return [kind, [[_split(x, tensors, depth + 1) for x in pair] for pair in value.items()]]
    raise TypeError(f"a {kind}")


_SEQUENCES: tuple[type, ...] = (list, tuple, torch.Size)
_MAPPINGS: tuple[type, ...] = (dict, OrderedDict)


def _split_tensor(x: Tensor, tensors: Tensors) -> Node:
    """The node for a tensor of any layout and dtype."""
    if x.is_meta:
        raise TypeError("a tensor on the meta device, which has no values")
    if _is_wrapper(x):
        raise TypeError(f"a tensor of the class {type(x).__name__}")
    if x.layout == torch.sparse_coo:
        indices, values = _split_tensor(x._indices(), tensors), _split_tensor(x._values(), tensors)
        return ["sparse_coo", [indices, values], list(x.shape), x.is_coalesced()]
    if x.layout in _COMPRESSED:
        parts = [getattr(x, method)() for method in (*_COMPRESSED[x.layout], "values")]
        kind = str(x.layout).removeprefix("torch.")
        return [kind, [_split_tensor(part, tensors) for part in parts], list(x.shape)]
    if x.is_quantized:
        return _split_quantized(x, tensors)
    return _split_strided(x.resolve_conj().resolve_neg().cpu(), tensors)


_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
"""Of each compressed sparse layout, the methods that return the two tensors of indices."""


def _split_strided(x: Tensor, tensors: Tensors) -> Node:
    """The node for an array of numbers. If files cannot hold its dtype, its bytes are stored."""
    if x.dtype in _STORED:
        tensors.append(x)
        return ["tensor", len(tensors) - 1]
    tensors.append(x.contiguous().view(-1).view(torch.uint8))
    return ["view", len(tensors) - 1, str(x.dtype).removeprefix("torch."), list(x.shape)]


def _split_quantized(x: Tensor, tensors: Tensors) -> Node:
    """The node for a quantized tensor: its whole numbers, scales and zero points."""
    whole = _split_tensor(x.int_repr(), tensors)
    if x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return ["per_tensor", whole, x.q_scale(), x.q_zero_point()]
    scales = _split_tensor(x.q_per_channel_scales(), tensors)
    zeros = _split_tensor(x.q_per_channel_zero_points(), tensors)
    return ["per_channel", whole, scales, zeros, x.q_per_channel_axis()]


# -------------------------------------------------------------------------- building


def _built(node: Node, tensors: Sequence[Tensor]) -> Any:
    """The value of a node."""
    kind, *rest = node
    return _BUILDERS[kind](tensors, *rest)


def _values(tensors: Sequence[Tensor], nodes: Sequence[Node]) -> list[Any]:
    return [_built(node, tensors) for node in nodes]


def _compressed(layout: torch.layout) -> Callable[..., Tensor]:
    """The function that builds a sparse tensor of this compressed layout."""

    def build(tensors: Sequence[Tensor], parts: Sequence[Node], shape: list[int]) -> Tensor:
        compressed, plain, values = _values(tensors, parts)
        return torch.sparse_compressed_tensor(compressed, plain, values, shape, layout=layout, check_invariants=True)

    return build


def _coordinates(tensors: Sequence[Tensor], parts: Sequence[Node], shape: list[int], coalesced: bool) -> Tensor:
    indices, values = _values(tensors, parts)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True, is_coalesced=coalesced)


def _per_tensor(tensors: Sequence[Tensor], whole: Node, scale: float, zero: int) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(_built(whole, tensors), scale, zero)


def _per_channel(tensors: Sequence[Tensor], whole: Node, scales: Node, zeros: Node, axis: int) -> Tensor:
    values, scale, zero = _values(tensors, [whole, scales, zeros])
    return torch._make_per_channel_quantized_tensor(values, scale, zero, axis)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "value": lambda tensors, value: value,
    "bytes": lambda tensors, text: bytes.fromhex(text),
    "dtype": lambda tensors, name: _dtype(name),
    "list": _values,
    "tuple": lambda tensors, nodes: tuple(_values(tensors, nodes)),
    "Size": lambda tensors, nodes: torch.Size(_values(tensors, nodes)),
    "dict": lambda tensors, pairs: dict(_values(tensors, pair) for pair in pairs),
    "OrderedDict": lambda tensors, pairs: OrderedDict(_values(tensors, pair) for pair in pairs),
    "tensor": lambda tensors, k: tensors[k],
    "view": lambda tensors, k, name, shape: tensors[k].view(_dtype(name)).view(shape),
    "sparse_coo": _coordinates,
    **{str(layout).removeprefix("torch."): _compressed(layout) for layout in _COMPRESSED},
    "per_tensor": _per_tensor,
    "per_channel": _per_channel,
}
"""For each kind, the function that builds the value from the arrays and the rest of the node."""


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
    return dtype
