"""Diagrams of tensor networks: cores are circles, bonds are lines, open indices are legs.

An index of three or more cores is a dot that joins them. An index that passes through its core (``t*``) is a dashed
leg. Networks that feed one another are stacked, with the activation in a bar between them. Where there is room, no
label covers another label, a core or a line. The same network always gives the same diagram.
"""

from __future__ import annotations

import os
from pathlib import Path

from tnc.draw.shapes import paint, svg
from tnc.draw.sketch import Sketch
from tnc.draw.stack import Diagrammed

__all__ = ["draw"]


def draw(network: Diagrammed, path: str | os.PathLike[str] | None = None) -> str:
    """SVG text of a network's diagram. With `path`, the diagram is written to that file, too.

    Parameters
    ----------
    network : Network
    path : path, optional
        Its suffix chooses the format. ``.svg`` needs no library; ``.png``, ``.pdf`` and others need matplotlib (extra
        ``plot``).

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
