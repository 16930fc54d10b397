"""What a plan costs on a device, in seconds: arithmetic, bytes moved, calls.

Four constants describe a device. `tnc.contract.devices` measures them once, in about a second, and keeps them in a
cache file. They can be set with ``TNC_COST="flops=1e11,bytes=1e10,call=5e-6,item=2e-7"``.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import inf

from tnc.contract.layout import NARROW
from tnc.contract.plans import Plan, Work

__all__ = ["Device", "convolution", "lanes", "piece", "seconds", "step"]

_LANES = 16
"""Channels that a convolution computes at once: the numbers of channels are rounded up to a multiple."""

_PIECE = 16
"""A piece of work takes as long to copy as this number of calls. The calls are then a small part of its time."""

_CACHE = 1 << 25
"""Bytes that stay in the processor's cache."""


@dataclass(frozen=True)
class Device:
    """Constants of a device, finite and above 0.

    Attributes
    ----------
    flops : float
        Multiplications and additions per second of a large float32 matrix product.
    bytes : float
        Bytes per second, read and written, of a permuted copy of a large array.
    call : float
        Seconds of the smallest step of a plan, with its views.
    item : float
        Seconds of each further matrix in a batched product of small matrices.

    Raises
    ------
    ValueError
        A constant is not finite, or not above 0.
    """

    flops: float = 5e10
    bytes: float = 8e9
    call: float = 1e-5
    item: float = 3e-7

    def __post_init__(self) -> None:
        if not all(0 < rate < inf for rate in astuple(self)):
            raise ValueError(f"{self}: rates are finite and above 0")


def seconds(plan: Plan, device: Device, *, itemsize: int = 4, training: bool = False) -> float:
    """Seconds that a plan takes.

    Parameters
    ----------
    plan : Plan
    device : Device
    itemsize : int
        Bytes of an entry.
    training : bool
        Whether to add the backward pass. It has two products for each product, and repeats every copy once.
    """
    return sum(step(work, device, itemsize, training) for work in plan.work)


def step(work: Work, device: Device, itemsize: int = 4, training: bool = False) -> float:
    """Seconds that a step takes: the larger of arithmetic and memory traffic, plus copies and calls.

    Parameters
    ----------
    work : Work
    device : Device
    itemsize : int
        Bytes of an entry.
    training : bool
        Whether to add the backward pass.
    """
    count, m, n, k, copied, slow = work
    copies = 2 * (copied + slow) * itemsize / device.bytes * (2 if training else 1)
    if not count:
        return copies
    short = min(m, n, k)
    # A short side does not fill the vector registers.
    arithmetic = 2.0 * count * m * n * k / (device.flops * short / (short + 12))
    if count == short == 1:
        arithmetic = 0.0  # a product with a vector: only reading the matrix takes time
    elif 1 < n < NARROW <= m:
        arithmetic *= 3
    traffic = sum(_stream(count * part * itemsize, device) for part in (m * k, k * n, m * n))
    product = max(arithmetic, traffic) + (count - 1) * device.item
    return (product + device.call) * (3 if training else 1) + copies


def piece(device: Device) -> int:
    """Bytes to work on at a time. Larger maps do not stay in the cache, and need new memory from the system."""
    return int(_PIECE * device.call * device.bytes)


def _stream(size: int, device: Device) -> float:
    """Seconds to read or write bytes in order. This is faster than a permutation if they are in the cache."""
    return size / device.bytes * (0.5 if size <= _CACHE else 2)


def convolution(
    groups: int, m: int, n: int, taps: int, columns: int, device: Device, *, itemsize: int = 4, training: bool = False
) -> float:
    """Seconds that a convolution takes.

    Libraries compute `_LANES` output channels at once, even if fewer are asked for. They also round up the input
    channels, unless these are fewer than `_LANES`. In the backward pass, the gradient of the input rounds up both. The
    gradient of the kernel costs what the forward pass costs. With groups, both numbers are rounded up, and the forward
    pass runs at twice the rate. Many groups with one input and one output channel are an exception. Maps are assumed to
    be small enough for the cache (see `piece`).

    Parameters
    ----------
    groups : int
        Number of groups.
    m, n : int
        Output channels and input channels of each group.
    taps : int
        Entries of the kernel for a pair of channels.
    columns : int
        Kernel positions in all images.
    device : Device
    itemsize : int
        Bytes of an entry.
    training : bool
        Whether to add the backward pass.
    """
    full = lanes(m) * lanes(n)
    forward = lanes(m) * n if n < _LANES else full  # pairs of channels that are computed
    input_gradient = full
    if groups > 1:
        forward = max(forward, full // 2)
    if m == n == 1 and 2 * groups >= _LANES:
        forward = 2
        input_gradient = 2 * _LANES
    entries = columns * (lanes(groups * m) + groups * n) + groups * m * n * taps
    pairs = forward + (input_gradient + forward if training else 0)
    arithmetic = 2.0 * groups * columns * taps * pairs / device.flops
    return arithmetic + (entries * itemsize / device.bytes + device.call) * (3 if training else 1)


def lanes(channels: int) -> int:
    """Channels that are computed if this number is asked for."""
    return -(-channels // _LANES) * _LANES
