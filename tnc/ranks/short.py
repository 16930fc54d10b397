"""Short forms of rank policies: numbers and text."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from tnc.errors import RankError
from tnc.ranks.base import RankPolicy
from tnc.ranks.budget import Budget
from tnc.ranks.policies import Fixed, Ratio, Tolerance
from tnc.typing import Rank

__all__ = ["policy"]


def policy(rank: Rank | float | str | RankPolicy) -> RankPolicy:
    """A policy from its short form. A whole number is a rank, any other number is a ratio.

    ``8``, ``(4, 8)``, ``0.1``, ``"4,8"``, ``"ratio:0.1"``, ``"tolerance:0.02"``, ``"budget:0.1"``,
    ``"budget:0.33,of=flops,batch=16"``, ``"budget:0.1,whole"``.

    Raises
    ------
    RankError
        The short form is not understood.
    """
    if isinstance(rank, RankPolicy):
        return rank
    if isinstance(rank, str):
        return _parse(rank)
    if isinstance(rank, Real) and not isinstance(rank, Integral):
        return Ratio(float(rank))
    return Fixed(rank)  # type: ignore[arg-type]


def _parse(text: str) -> RankPolicy:
    kinds: dict[str, Callable[[str], RankPolicy]] = {
        "ratio": lambda value: Ratio(float(value)),
        "tolerance": lambda value: Tolerance(float(value)),
        "budget": _budget,
    }
    kind, colon, value = text.strip().partition(":")
    value = value if colon else kind
    try:
        if colon and kind != "rank":
            return kinds[kind](value)
        if "," in value:
            return Fixed(tuple(int(r) for r in value.strip("()[] ").split(",") if r.strip()))
        return Fixed(int(value)) if value.lstrip("+-").isdigit() else Ratio(float(value))
    except (KeyError, ValueError) as error:
        if isinstance(error, RankError):
            raise
        raise RankError(
            f"rank {text!r} is not understood: write 8, 4,8,4, 0.1, ratio:0.1, tolerance:0.02, budget:0.1 or "
            "budget:0.1,of=flops,batch=16 (of=parameters, bytes or flops; whole for the whole model)"
        ) from None


def _budget(text: str) -> Budget:
    """A budget from its ratio and its options, such as ``0.33,of=flops,batch=16`` or ``0.1,whole``.

    Raises
    ------
    KeyError, ValueError
        An option is not known, stands twice, or is no number.
    """
    ratio, *words = (word.strip() for word in text.split(","))
    readers: dict[str, Callable[[str], Any]] = {"of": str.strip, "batch": int, "whole": _flag}
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        name = name.strip()
        if name in options:
            raise ValueError(f"{name} stands twice")
        options[name] = readers[name](value)
    return Budget(float(ratio), **options)


def _flag(value: str) -> bool:
    """The value of an option that takes none."""
    if value:
        raise ValueError("this option takes no value")
    return True
