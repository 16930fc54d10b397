"""Which files a training step of a layer goes through, for whoever reads along.

``python -m benchmarks.walk`` prints, for a linear map and for a convolution, each call from one file of the package
into another, once, in the order in which they first happen, and how often the step changes files in all. Calls that
torch makes into the package are not counted.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

import tnc
import tnc.nn

__all__ = ["Walk", "convolution", "linear", "walk"]

ROOT = Path(tnc.__file__).parent


class Walk(NamedTuple):
    """The calls of a step.

    Attributes
    ----------
    calls : list of (str, str, str)
        The calling file, the file that is called, and the function first called there; each pair of files once.
    changes : int
        How often a function of another file is entered than the one entered before.
    """

    calls: list[tuple[str, str, str]]
    changes: int


def walk(step: Callable[[], Any]) -> Walk:
    """Follow the calls between files of the package while `step` runs, its backward pass included."""
    pairs: dict[tuple[str, str], str] = {}
    last, changes = "", 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal last, changes
        here = _file(frame)
        if event != "call" or not here:
            return
        changes += bool(last) and here != last
        last = here
        caller = frame.f_back
        while caller is not None and not _file(caller):  # torch stands between
            caller = caller.f_back
        if caller is not None and (there := _file(caller)) != here:
            pairs.setdefault((there, here), frame.f_code.co_name)

    threading.setprofile(note)  # the backward pass may run in a thread of its own
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Walk([(*pair, name) for pair, name in pairs.items()], changes)


def _file(frame: FrameType) -> str:
    """The file of a function, if it is one of the package's."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def linear() -> Callable[[], Any]:
    """A training step of a linear map, from its second call on."""
    layer = tnc.nn.Linear(1024, 1024, decomposition="mpo(order=2)", rank=4, execution="factorized")
    return _step(layer, torch.randn(64, 1024, requires_grad=True))


def convolution() -> Callable[[], Any]:
    """A training step of a convolution, from its second call on."""
    layer = tnc.nn.Conv2d(64, 64, 3, padding=1, decomposition="tucker", rank=16, execution="factorized")
    return _step(layer, torch.randn(8, 64, 16, 16, requires_grad=True))


def _step(layer: torch.nn.Module, input: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        layer(input).square().sum().backward()

    step()
    return step


if __name__ == "__main__":
    for make in (linear, convolution):
        found = walk(make())
        print(f"{make.__name__}: {len(found.calls)} calls into another file, {found.changes} changes in all")
        for caller, called, name in found.calls:
            print(f"  {caller:28} {called:28} {name}")
