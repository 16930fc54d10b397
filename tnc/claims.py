"""Checks of values that were read from a file, one at a time.

A value of the wrong type is a `CheckpointError` that says where the value stands. The argument `where` is that place,
in words for the message.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping
from itertools import accumulate, pairwise
from reprlib import repr as shortly
from typing import Any, NoReturn, cast

from tnc.errors import CheckpointError, TncError

__all__ = ["fail", "items", "members", "number", "parse", "text", "whole"]

_USUAL = 1000
"""Default recursion limit of Python. With it, the JSON parser stops before the stack overflows."""

_LARGEST = 2**63 - 1
"""Largest index of an array in every library."""


def fail(where: str, value: Any, wanted: str) -> NoReturn:
    """Raise an error that says what a value is and what is needed.

    Parameters
    ----------
    where : str
        The place of the value.
    value : object
        Long ones are shortened.
    wanted : str
        What is needed.

    Raises
    ------
    CheckpointError
        Always.
    """
    raise CheckpointError(f"{where} is {shortly(value)}: {wanted} is needed")


def parse(words: str | bytes, where: str) -> Any:
    """The value of JSON text.

    Raises
    ------
    CheckpointError
        The text is not JSON, is nested too deep, or has an object with the same member twice.
    """
    try:
        words = words if isinstance(words, str) else words.decode()
        if sys.getrecursionlimit() > _USUAL and _depth(words) > _USUAL:  # the stack of the process could overflow
            raise RecursionError
        return json.loads(words, object_pairs_hook=_distinct)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deep") from None
    except ValueError as error:  # wrong syntax or encoding, or a number with too many digits
        raise CheckpointError(f"{where} is no JSON: {error}") from error


def _depth(words: str) -> int:
    """How deep lists and objects are nested."""
    brackets = re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^"\[\]{}]+', "", words, flags=re.DOTALL)
    return max(accumulate((1 if bracket in "[{" else -1 for bracket in brackets), initial=0))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose members all have different names."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(a for a, b in pairwise(names) if a == b)
        raise ValueError(f"{shortly(twice)} stands twice in one object")
    return members


def whole(value: Any, where: str, least: int = 0) -> int:
    """An int from `least` to the largest index of an array. True and 2.0 are not accepted.

    Parameters
    ----------
    value : object
    where : str
        The place of the value, for messages.
    least : int

    Raises
    ------
    CheckpointError
        The value is something else.
    """
    if type(value) is not int or not least <= value <= _LARGEST:
        fail(where, value, f"a whole number from {least} to 2**63 - 1")
    return value


def number(value: Any, where: str) -> float:
    """An int or a float. It may be infinite or NaN."""
    if type(value) not in (int, float) or (type(value) is int and abs(value) > _LARGEST):
        fail(where, value, "a number")
    return cast("float", value)


def text(value: Any, where: str) -> str:
    """A string that UTF-8 can encode."""
    if not isinstance(value, str):
        fail(where, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        fail(where, value, "text that UTF-8 can write")
    return value


def items(value: Any, where: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        fail(where, value, "a list")
    return value


def members(
    value: Any,
    where: str,
    required: Collection[str] | None = None,
    optional: Collection[str] = (),
    error: type[TncError] = CheckpointError,
) -> dict[str, Any]:
    """A mapping with all required members, and with no others than these and the optional ones.

    Parameters
    ----------
    value : object
    where : str
        The place of the value, for messages.
    required : collection of str, optional
        None accepts any members.
    optional : collection of str
    error : type of TncError
        The error to raise.

    Raises
    ------
    error
        The value is not a mapping, or has missing or unknown members.
    """
    if not isinstance(value, Mapping):
        wanted = "an object" if required is None else f"a mapping with {', '.join(required)}"
        raise error(f"{where} is {shortly(value)}: {wanted} is needed")
    mapping = cast("dict[str, Any]", value)  # not a copy: callers take members out
    if required is None:
        return mapping
    for name in required:
        if name not in value:
            raise error(f"{where} has no {name!r}")
    for name in value:
        if name not in required and name not in optional:
            raise error(f"{where} has a member {shortly(name)} that is not known here")
    return mapping
