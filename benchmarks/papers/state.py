"""What is known of one row of the queue, in a file that survives a kill; and the lock of the folder of these files."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnc import files
from tnc.errors import CheckpointError, TncError
from tnc.settings import cache_folder

__all__ = ["State", "default_folder", "locked", "write_text"]


def default_folder() -> Path:
    """Where the queue keeps its states if ``--state`` names no other folder."""
    return cache_folder() / "papers-queue"


def write_text(path: Path, text: str) -> None:
    """Write a text file; if that fails, the earlier file stays.

    Raises
    ------
    CheckpointError
        The folder or the file cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {str(path.parent)!r}: {error}") from error
    with files.writing(path) as write:
        write(text.encode())


class State:
    """Settings and results of one row, or of the choice of its learning rate.

    Attributes
    ----------
    path : Path
        The JSON file. Files of weights stand beside it, see `beside`.
    settings : dict
        What the results depend on.
    values : dict
        What is known so far.

    Raises
    ------
    CheckpointError
        The file is damaged, or it is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(dict(settings)))
        self.values: dict[str, Any] = {}
        if not path.is_file():
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            there, self.values = dict(held["settings"]), dict(held["values"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the state {str(path)!r} is damaged ({error!r}): delete it to begin anew") from error
        if there != self.settings:
            names = [name for name in {**there, **self.settings} if there.get(name) != self.settings.get(name)]
            said = "; ".join(f"{name}={there.get(name)!r} there, {self.settings.get(name)!r} here" for name in names)
            raise CheckpointError(
                f"the state {str(path)!r} is of other settings: {said}. Use the same settings, name another folder by "
                "--state, or delete the file"
            )

    def put(self, **values: Any) -> None:
        """Keep values; the file is written at once."""
        self.values |= values
        text = json.dumps({"settings": self.settings, "values": self.values}, indent=1, ensure_ascii=False)
        write_text(self.path, text + "\n")

    def beside(self, ending: str) -> Path:
        """The path of a file that belongs to this state."""
        return self.path.with_name(f"{self.path.stem}.{ending}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no second queue use the folder. The lock goes with the process, however that ends.

    Raises
    ------
    TncError
        Another queue uses the folder, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / "lock", "a+", encoding="ascii")  # noqa: SIM115 - closed by the block below
    except OSError as error:
        raise TncError(f"cannot use the folder {str(folder)!r} for states: {error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            who = handle.read().strip() or "of an unknown number"
            raise TncError(
                f"a queue is running on {str(folder)!r} already (process {who}): wait for it, or name another folder "
                "by --state"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
