"""Refuse to write folders for ``from_pretrained``, which would read them as dense models with random weights."""

from __future__ import annotations

import sys
from types import FrameType

from tnc.errors import WeightError

__all__ = ["by_trainer", "refuse_folder"]

_WRITERS = ("save_pretrained", "_save_pretrained")
_LIBRARIES = ("transformers", "huggingface_hub")
_TRAINER = "transformers.trainer"


def by_trainer(frame: FrameType | None) -> bool:
    """Whether the caller is a ``Trainer`` of transformers, which reads its checkpoints back into the same model."""
    return frame is not None and _module(frame).startswith(_TRAINER)


def refuse_folder(always: bool = False) -> None:
    """Raise if transformers or huggingface_hub is about to write the state for its ``from_pretrained``.

    The cores call this when they write their state. The model that contains them may not be of our classes, so that it
    cannot refuse itself. Therefore the stack of callers is searched.

    Parameters
    ----------
    always : bool
        Raise without looking at the callers.

    Raises
    ------
    WeightError
        Such a library is writing, and it is not a ``Trainer``.
    """
    if always or _is_writing(sys._getframe(1)):
        raise WeightError(
            "save_pretrained would write a folder that from_pretrained reads as a dense model with random weights: "
            "save with tnc.nn.save(model, 'model.safetensors') and read with tnc.nn.load into a model of the same "
            "configuration, or write a dense folder after tnc.nn.uninstall(model)"
        )


def _is_writing(frame: FrameType | None) -> bool:
    """Whether ``save_pretrained`` is among the callers, unless a ``Trainer`` called it."""
    while frame is not None:
        if frame.f_code.co_name in _WRITERS and _module(frame).partition(".")[0] in _LIBRARIES:
            return not by_trainer(frame.f_back)
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    """The name of the module whose code runs in a frame."""
    return str(frame.f_globals.get("__name__", ""))
