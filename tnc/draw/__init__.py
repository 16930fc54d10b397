"""Diagrams of tensor networks: cores are circles, bonds are lines, open indices are legs.

An index of three or more cores is a dot that joins them, one that passes through its core (``t*``) a dashed leg,
and networks that feed one another stand in a stack with the activation between them. No label lies on another,
on a core or on a line where there is room for it, and the same network always gives the same diagram.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tnc.draw.shapes import paint, svg
from tnc.draw.sketch import Sketch

__all__ = ["draw"]


def draw(network: Any, path: str | os.PathLike[str] | None = None) -> str:
    """SVG text of a network's diagram; written to `path`, too, as its suffix says.

    Parameters
    ----------
    network : Network
    path : path, optional
        ``.svg`` needs no library; ``.png``, ``.pdf`` and others need matplotlib (extra ``plot``).

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    shapes = Sketch(network).shapes
    text = svg(shapes, network.pattern)
    if path is not None and Path(path).suffix.lower() == ".svg":
        Path(path).write_text(text, encoding="utf-8")
    elif path is not None:
        paint(shapes, Path(path))
    return text
