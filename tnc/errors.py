"""Errors of `tnc`. Each message says what was asked for, what exists and what to do.

Every error derives from `TncError` and from the built-in class that a caller would expect (`ValueError`, `KeyError`,
...). So ``except ValueError`` works, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "CheckpointError",
    "DataError",
    "MatchError",
    "MissingExtraError",
    "PatternError",
    "PluginError",
    "PromiseError",
    "RankError",
    "TncError",
    "UnknownNameError",
    "WeightError",
]


class TncError(Exception):
    """Base class of all errors raised by `tnc`."""

    def __str__(self) -> str:  # KeyError would print its message in quotes
        return " ".join(str(arg) for arg in self.args)


class PatternError(TncError, ValueError):
    """A network's pattern or sizes are inconsistent."""


class RankError(TncError, ValueError):
    """A rank, ratio or tolerance is not possible."""


class PromiseError(RankError):
    """No rank can meet the requirement of the policy for this weight. The weight stays dense."""


class WeightError(TncError, ValueError):
    """A weight cannot be factorized: its dtype, its shape, non-finite entries, or the meta device."""


class MatchError(TncError, LookupError):
    """A rule matches nothing, or a name does not exist."""


class UnknownNameError(TncError, KeyError):
    """No plugin or backend of this name is installed."""


class PluginError(TncError, ImportError):
    """A plugin has the name of another one, does not import, or is of the wrong type."""


class BackendError(TncError, RuntimeError):
    """A backend is installed but cannot be used here."""


class MissingExtraError(TncError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class CheckpointError(TncError, ValueError):
    """A checkpoint is truncated, damaged, of another format, or made for another architecture."""


class DataError(TncError, ValueError):
    """Calibration data cannot be used, or statistics are of another model."""


def closest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the known name that is most similar to `name`; an empty string if none is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def printable(words: str) -> str:
    """The text, with an escape for each character that a terminal would not print, such as control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message: the first `most`, and how many there are."""
    names = list(names)
    shown = ", ".join(map(printable, names[:most])) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")
