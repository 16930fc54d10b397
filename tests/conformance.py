"""Shapes for the conformance kit where fits take seconds."""

from __future__ import annotations

from array_api_compat import is_numpy_namespace

from tnc.testing import SHAPES

__all__ = ["shapes_for"]


def shapes_for(xp):
    """All shapes of the kit on NumPy, and a matrix elsewhere: what depends on the library is the same for all."""
    return SHAPES if is_numpy_namespace(xp) else SHAPES[:1]
