"""Names of types: arrays of any library of the array API standard, and their namespaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

__all__ = ["Array", "Cores", "Namespace", "Rank", "Shape"]

Array: TypeAlias = Any
"""An array of NumPy, CuPy, PyTorch or any other library of the array API standard."""

Namespace: TypeAlias = Any
"""An array API namespace, such as ``array_api_compat.array_namespace(x)``."""

Cores: TypeAlias = Sequence[Array]
"""The cores of a factorization, in the order of `Network.core_shapes`."""

Shape: TypeAlias = tuple[int, ...]
"""Sizes of the axes of an array."""

Rank: TypeAlias = int | Sequence[int]
"""One rank for all bonds, or one for each bond in the order of `Network.bonds`."""
