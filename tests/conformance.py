"""Shapes for the conformance kit where fits take seconds."""

from __future__ import annotations

from array_api_compat import is_numpy_namespace

from tnc.testing import SHAPES

__all__ = ["shapes_for"]


def shapes_for(xp, *, cycles=False):
    """All shapes of the kit on NumPy; elsewhere a matrix and a kernel, which meet all that depends on the library.

    Fits of cycles take longer: for them it is the matrix alone.
    """
    if is_numpy_namespace(xp):
        return SHAPES
    return SHAPES[:1] if cycles else SHAPES[::2]
