"""Which plugins, libraries and shapes the conformance kit meets where fits take seconds."""

from __future__ import annotations

import pytest
from array_api_compat import is_numpy_namespace

from tests.conftest import PLACES
from tnc.testing import SHAPES

__all__ = ["everywhere", "shapes_for"]


def everywhere(first, *others):
    """Cases of `decomposition` and `place`: the first with every library, the others with NumPy.

    Settings of a plugin change its networks. They do not change which functions of a library its fits call.
    """
    places = [place if hasattr(place, "marks") else pytest.param(place) for place in PLACES]
    cases = [pytest.param(first, *place.values, marks=place.marks) for place in places]
    cases += [pytest.param(other, "numpy") for other in others]
    return pytest.mark.parametrize(("decomposition", "place"), cases, indirect=["place"])


def shapes_for(xp, *, cycles=False):
    """All shapes of the kit on NumPy; elsewhere a matrix and a kernel, which meet all that depends on the library.

    Fits of cycles take longer: for them it is the matrix alone.
    """
    if is_numpy_namespace(xp):
        return SHAPES
    return SHAPES[:1] if cycles else SHAPES[::2]
