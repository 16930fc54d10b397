"""Append zeros to the axes of an array, and cut them off."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from tnc.typing import Array, Namespace, Shape

__all__ = ["crop", "pad"]


def crop(x: Array, shape: Shape | None) -> Array:
    """The first entries of `x` along every axis, up to `shape`. A view, or `x` itself if nothing is cut off."""
    if shape is None or tuple(x.shape) == tuple(shape):
        return x
    return x[tuple(slice(0, n) for n in shape)]


def pad(x: Array, shape: Shape, xp: Namespace | None = None) -> Array:
    """Append zeros along every axis up to `shape`.

    Parameters
    ----------
    x : array
    shape : tuple of int
        The padded shape. Along no axis is it smaller than that of `x`.
    xp : namespace, optional
        The array library; that of `x` when omitted.

    Returns
    -------
    array
        Of shape `shape`. This is `x` itself if no zeros are needed.
    """
    xp = array_namespace(x) if xp is None else xp
    for axis, size in enumerate(shape):
        missing = size - x.shape[axis]
        if missing:
            filler = (*x.shape[:axis], missing, *x.shape[axis + 1 :])
            x = xp.concat([x, xp.zeros(filler, dtype=x.dtype, device=device(x))], axis=axis)
    return x
