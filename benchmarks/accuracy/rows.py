"""The rows of the table by name: the controls first, then ours."""

from __future__ import annotations

from benchmarks.accuracy import controls, ours
from benchmarks.accuracy.subject import Row

__all__ = ["DENSE", "ROWS"]

DENSE = "dense"
ROWS: dict[str, Row] = controls.CONTROLS | ours.ROWS
