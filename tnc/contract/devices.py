"""The constants of a device: measured once, and kept in a cache file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np

from tnc.backends import Backend
from tnc.contract.cost import Device
from tnc.contract.executor import run
from tnc.contract.plans import plan
from tnc.errors import TncError
from tnc.settings import cache_folder

__all__ = ["calibrate", "device"]


# ------------------------------------------------------------------ measuring

_CHAIN = plan(
    (("a", "b", "c"), ("d", "b", "e"), ("f", "c", "e"), ("g", "d", "f")), ("g", "a"), tuple((i, 4) for i in "abcdefg")
)
"""Small cores of three axes each. Most steps permute their operands."""


def calibrate(backend: Backend) -> Device:
    """Measure the constants of a backend's device. This takes about a second."""
    xp = backend.xp
    rng = np.random.default_rng(0)

    def random(*shape: int) -> object:
        return backend.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    large = random(1024, 1024)
    small = random(4, 4, 4)
    stack = random(512, 16, 16)
    cube = random(256, 128, 128)
    flops = 2 * 1024**3 / _time(lambda: xp.matmul(large, large), backend)
    # After 30 MB have been freed, glibc reuses blocks of 16 MB. New blocks would take four times as long.
    random(7_500_000)
    move = _time(lambda: xp.reshape(xp.permute_dims(cube, (1, 0, 2)), (128, -1)), backend)
    call = _time(lambda: run(_CHAIN, [small] * 4, xp), backend, 200) / len(_CHAIN.steps)
    item = _time(lambda: xp.matmul(stack, stack), backend, 20) / 512
    return Device(flops, 2 * 4 * 256 * 128 * 128 / move, call, max(item - 2 * 16**3 / flops, 5e-8))


def _time(f: Callable[[], object], backend: Backend, repeats: int = 5) -> float:
    """Seconds of the fastest call. Other work on the machine can only make a call slower."""
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
    """The constants of a device: from ``TNC_COST``, from the cache file, or measured now.

    Parameters
    ----------
    backend : Backend
        The backend to measure.
    label : str
        The key in the cache file: the device, the library and its threads. Another machine then measures its own.

    Returns
    -------
    Device

    Raises
    ------
    TncError
        ``TNC_COST`` cannot be parsed, or a constant is not finite and above 0.
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
    """The constants that ``TNC_COST`` sets. Those it does not name are taken from `base`."""
    try:
        rates = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            rates[name.strip()] = float(value)
        return replace(base, **rates)
    except (TypeError, ValueError):
        names = ", ".join(item.name for item in fields(Device))
        raise TncError(f"TNC_COST={text!r}: write name=value,... of {names}, finite and above 0") from None


_FILE = "devices.json"


def _read(entry: Any) -> Device | None:
    """A device from an entry of the cache file. None if the entry is damaged or from another version."""
    with suppress(TypeError, ValueError):
        constants = Device(**entry)
        if asdict(constants) == entry:
            return constants
    return None


def _cached() -> dict[str, Any]:
    """The entries of the cache file, by label. Empty if it cannot be read."""
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        entries = json.loads((cache_folder() / _FILE).read_text())
        if isinstance(entries, dict):
            return entries
    return {}


def _remember(entries: dict[str, Any]) -> None:
    """Write the cache file. It is no error if this fails."""
    with suppress(OSError, RuntimeError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_FILE}.{os.getpid()}"  # replaced at once: other processes read whole files
        temporary.write_text(json.dumps(entries, indent=1))
        temporary.replace(folder / _FILE)
