"""What a plan costs on a device, in seconds: arithmetic, bytes moved, calls.

Four constants describe a device. They are measured once (`calibrate`, about a second), kept in a cache file, and
can be set with ``TNC_COST="flops=1e11,bytes=1e10,call=5e-6,item=2e-7"``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import lru_cache
from math import inf
from time import perf_counter
from typing import Any

import numpy as np

from tnc.backends import Backend
from tnc.data import cache_folder
from tnc.errors import TncError
from tnc.layouts import NARROW
from tnc.plans import Plan, Work, plan, run

__all__ = ["Device", "calibrate", "convolution", "device", "lanes", "piece", "seconds", "step"]

_LANES = 16
"""Channels that a convolution computes at once."""

_PIECE = 16
"""A piece of work: what takes as long to copy as so many calls, so that these are a small share of it."""

_CACHE = 1 << 25
"""Bytes that a processor holds near."""


@dataclass(frozen=True)
class Device:
    """Rates of a device, finite and above 0.

    Attributes
    ----------
    flops : float
        Multiplications and additions a second of a large float32 matrix product.
    bytes : float
        Bytes a second read and written by a permuted copy of a large array.
    call : float
        Seconds of one step of a plan, its views included, however small.
    item : float
        Seconds of each further matrix in a batched product of small ones.
    """

    flops: float = 5e10
    bytes: float = 8e9
    call: float = 1e-5
    item: float = 3e-7

    def __post_init__(self) -> None:
        if not all(0 < rate < inf for rate in astuple(self)):
            raise ValueError(f"{self}: rates are finite and above 0")


def seconds(plan: Plan, device: Device, *, itemsize: int = 4, training: bool = False) -> float:
    """Time of a plan; with its backward pass when `training`.

    The backward pass multiplies twice for every product and moves every copy once more.
    """
    return sum(step(work, device, itemsize, training) for work in plan.work)


def step(work: Work, device: Device, itemsize: int = 4, training: bool = False) -> float:
    """Time of one step: the larger of arithmetic and traffic, plus copies and calls."""
    count, m, n, k, copied, slow = work
    copies = 2 * (copied + slow) * itemsize / device.bytes * (2 if training else 1)
    if not count:
        return copies
    short = min(m, n, k)
    arithmetic = 2.0 * count * m * n * k / (device.flops * short / (short + 12))  # short sides leave lanes idle
    if count == short == 1:
        arithmetic = 0.0  # a vector: the matrix streams by
    elif 1 < n < NARROW <= m:
        arithmetic *= 3
    traffic = sum(_stream(count * part * itemsize, device) for part in (m * k, k * n, m * n))
    product = max(arithmetic, traffic) + (count - 1) * device.item
    return (product + device.call) * (3 if training else 1) + copies


def piece(device: Device) -> int:
    """Bytes that are best worked on at a time: larger maps come from far away, and in fresh memory."""
    return int(_PIECE * device.call * device.bytes)


def _stream(size: int, device: Device) -> float:
    """Time to read or write so many bytes in order: faster than a permutation, unless they come from far away."""
    return size / device.bytes * (0.5 if size <= _CACHE else 2)


def convolution(
    groups: int, m: int, n: int, taps: int, columns: int, device: Device, *, itemsize: int = 4, training: bool = False
) -> float:
    """Time of a convolution of `groups` times `n` channels to `groups` times `m`, over `columns` places.

    Libraries compute `_LANES` channels out at once, however few are asked for, and fill up channels in unless they are
    few. Backward the gradient of the input fills up both, that of the kernel costs what the way forward does. With
    groups both are filled up, too, at twice the rate forward, unless many groups have one channel in and out. Maps are
    taken to be small enough to lie near; `piece` says how small.
    """
    full = lanes(m) * lanes(n)
    forth, back = (lanes(m) * n, full) if n < _LANES else (full, full)
    if groups > 1:
        forth = max(forth, full // 2)
    if m == n == 1 and 2 * groups >= _LANES:
        forth, back = 2, 2 * _LANES
    entries = columns * (lanes(groups * m) + groups * n) + groups * m * n * taps
    work = 2.0 * groups * columns * taps * (forth + (back + forth if training else 0)) / device.flops
    return work + (entries * itemsize / device.bytes + device.call) * (3 if training else 1)


def lanes(channels: int) -> int:
    """Channels that are computed where so many are asked for."""
    return -(-channels // _LANES) * _LANES


# ------------------------------------------------------------------ measuring

_CHAIN = plan(
    (("a", "b", "c"), ("d", "b", "e"), ("f", "c", "e"), ("g", "d", "f")), ("g", "a"), tuple((i, 4) for i in "abcdefg")
)
"""Small cores of three axes, of which steps permute most."""


def calibrate(backend: Backend) -> Device:
    """Measure the constants of a backend's device; about a second."""
    xp = backend.xp
    rng = np.random.default_rng(0)

    def made(*shape: int) -> object:
        return backend.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    big, small, stack, cube = made(1024, 1024), made(4, 4, 4), made(512, 16, 16), made(256, 128, 128)
    flops = 2 * 1024**3 / _time(lambda: xp.matmul(big, big), backend)
    made(7_500_000)  # once 30 MB have been freed, glibc hands 16 MB out again: fresh ones would take four times as long
    move = _time(lambda: xp.reshape(xp.permute_dims(cube, (1, 0, 2)), (128, -1)), backend)
    call = _time(lambda: run(_CHAIN, [small] * 4, xp), backend, 200) / len(_CHAIN.steps)
    item = _time(lambda: xp.matmul(stack, stack), backend, 20) / 512
    return Device(flops, 2 * 4 * 256 * 128 * 128 / move, call, max(item - 2 * 16**3 / flops, 5e-8))


def _time(f: Callable[[], object], backend: Backend, repeats: int = 5) -> float:
    """Least seconds of a call: other work on the machine only ever adds."""
    times = []
    for _ in range(repeats + 2):
        backend.synchronize()
        start = perf_counter()
        f()
        backend.synchronize()
        times.append(perf_counter() - start)
    return min(times[2:])


@lru_cache(maxsize=64)
def device(backend: Backend, label: str) -> Device:
    """The constants of a device: from ``TNC_COST``, the cache, or measured now.

    Parameters
    ----------
    backend : Backend
    label : str
        Names the device, the library and its threads, so that another machine measures anew.

    Raises
    ------
    TncError
        ``TNC_COST`` does not parse, or a constant is not finite and above 0.
    """
    known = _cached()
    measured = _read(known.get(label))
    if stated := os.environ.get("TNC_COST"):
        return _stated(stated, measured or Device())
    if measured is None:
        measured = calibrate(backend)
        _remember({**known, label: asdict(measured)})
    return measured


def _stated(text: str, base: Device) -> Device:
    try:
        pairs = {key.strip(): float(value) for key, _, value in (part.partition("=") for part in text.split(","))}
        return replace(base, **pairs)
    except (TypeError, ValueError):
        names = ", ".join(item.name for item in fields(Device))
        raise TncError(f"TNC_COST={text!r}: write name=value,... of {names}, finite and above 0") from None


_FILE = "devices.json"


def _read(entry: Any) -> Device | None:
    """A device out of the cache, unless it is damaged or of another version."""
    with suppress(TypeError, ValueError):
        if asdict(made := Device(**entry)) == entry:
            return made
    return None


def _cached() -> dict[str, Any]:
    with suppress(OSError, ValueError, RuntimeError):  # the last: there is no home
        if isinstance(found := json.loads((cache_folder() / _FILE).read_text()), dict):
            return found
    return {}


def _remember(known: dict[str, Any]) -> None:
    """Keep the constants; a cache that cannot be written is no error."""
    with suppress(OSError, RuntimeError):
        (folder := cache_folder()).mkdir(parents=True, exist_ok=True)
        beside = folder / f"{_FILE}.{os.getpid()}"
        beside.write_text(json.dumps(known, indent=1))
        beside.replace(folder / _FILE)
