"""What has been measured, in a file that is replaced as a whole: a killed run goes on where it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tnc.files import writing

__all__ = ["Key", "State"]


class Key(NamedTuple):
    """A cell of the table. The dense network is row "dense" at share 1."""

    network: str
    share: float
    row: str


class State:
    """Results by `Key`, read from a file and written to it after every change.

    Parameters
    ----------
    path : Path
        It need not exist. A file that is no such state is an error, so that nothing is overwritten by mistake.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[Key, dict[str, Any]] = self._read()

    def put(self, key: Key, result: dict[str, Any]) -> None:
        """Keep a result. What others have written meanwhile is kept, too."""
        self.results = self._read() | {key: result}
        held = [{**k._asdict(), **self.results[k]} for k in sorted(self.results, key=lambda k: (k[0], -k[1], k[2]))]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path) as write:
            write((json.dumps(held, indent=1) + "\n").encode())

    def has(self, key: Key, settings: dict[str, Any]) -> bool:
        """Whether there is a result of these settings."""
        held = self.results.get(key, {})
        return "score" in held and all(held.get(name) == value for name, value in settings.items())

    def _read(self) -> dict[Key, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        entries = json.loads(self.path.read_text(encoding="utf-8"))
        return {
            Key(*(one[field] for field in Key._fields)): {k: v for k, v in one.items() if k not in Key._fields}
            for one in entries
        }
