"""Errors of `tnc`: each says what was asked, what exists and what to do.

Every error derives from `TncError` and from the built-in class a caller would expect
(`ValueError`, `KeyError`, ...), so that ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "CheckpointError",
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

    def __str__(self) -> str:  # KeyError would print the repr of its message
        return " ".join(str(arg) for arg in self.args)


class PatternError(TncError, ValueError):
    """A network's pattern or sizes are inconsistent."""


class RankError(TncError, ValueError):
    """A rank, ratio or tolerance is not possible."""


class PromiseError(RankError):
    """No rank keeps the policy's promise for this weight: it stays dense."""


class WeightError(TncError, ValueError):
    """A weight cannot be factorized: dtype, non-finite entries, meta device, shape."""


class MatchError(TncError, LookupError):
    """A rule matches nothing, or a name does not exist."""


class UnknownNameError(TncError, KeyError):
    """No plugin or backend of that name is installed."""


class PluginError(TncError, ImportError):
    """A plugin clashes with another, does not import or is of the wrong type."""


class BackendError(TncError, RuntimeError):
    """A backend is installed but cannot be used here."""


class MissingExtraError(TncError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class CheckpointError(TncError, ValueError):
    """A checkpoint is truncated, foreign, or made for another architecture."""


def closest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, shortened to the first `most`."""
    names = list(names)
    shown = ", ".join(names[:most]) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")
