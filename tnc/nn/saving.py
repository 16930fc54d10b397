"""`save` and `load`: a model with factorized weights, whole, to one file and back."""

from __future__ import annotations

from typing import Any

from torch import nn

from tnc.backends import get
from tnc.checkpoint import Checkpoint
from tnc.checkpoint import load as read
from tnc.nn.install import install
from tnc.nn.sites import factorizations, weights

__all__ = ["load", "save"]


def save(model: nn.Module, path: Any) -> None:
    """Save a model with factorized weights, fine-tuned or not, whole, to one ``.safetensors`` file.

    Raises
    ------
    CheckpointError
        The folder is missing or the file cannot be written; an old file survives.
    """
    report = getattr(model, "tnc_report", None)
    methods = {row.name: row.method for row in report.rows} if report else {}
    homes: dict[Any, str] = {}
    keys = {name: id(cores[0]) for name, _, _, cores, _ in factorizations(model)}
    entries, aliases = {}, {}
    for name, entry in weights(model).items():
        key = keys.get(name) or get("torch").memory(entry)
        if name not in keys and entry.numel() < 2:
            key = name
        home = homes.setdefault(key, name)
        if home == name:
            entries[name] = entry
        else:
            aliases[name] = home
    Checkpoint(entries, methods=methods, aliases=aliases, report=report).save(path)


def load(model: nn.Module, path: Any, *, execution: str = "auto") -> nn.Module:
    """Load what `save` wrote into a fresh model of the same architecture.

    Raises
    ------
    CheckpointError
        The file is not a checkpoint, or one of another architecture.
    """
    return install(model, read(path), execution=execution)
