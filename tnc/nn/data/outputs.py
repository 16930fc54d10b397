"""The numbers in what a model returns, in a form in which two models can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tnc.errors import DataError
from tnc.nn.data.batches import tensors

__all__ = ["logits", "mask_of", "meaningful", "outputs", "predicting", "rows"]

_LEFT_OUT = ("loss", "past_key_values")
"""What a ModelOutput may hold besides outputs. A loss depends on labels, and keys and values repeat the states."""

_LARGEST = 1e30
"""Larger numbers stand for minus infinity in masked logits, and their squares would exceed float32."""


def outputs(returned: Any) -> list[Tensor]:
    """All floating tensors with samples in what a model returned.

    It may have returned a tensor, or tuples, mappings or dataclasses of them, such as a ModelOutput. Losses are left
    out, and so are keys and values for the next tokens.

    Raises
    ------
    DataError
        There is none.
    """
    kept = returned
    if isinstance(returned, Mapping):
        kept = {name: part for name, part in returned.items() if name not in _LEFT_OUT}
    found = [x for x in tensors(kept) if x.is_floating_point() and x.ndim]
    if not found:
        raise DataError(
            f"the model returned a {type(returned).__name__} without floating tensors that have samples on their first "
            "axis: pass forward=, a function of the model and the batch that returns its outputs"
        )
    return found


_NO_CLASSES = ("regression", "multi_label_classification")
"""Kinds of problems, as the config of a model of transformers calls them, whose logits are not read by a softmax."""


def logits(model: nn.Module, returned: Any) -> Tensor | None:
    """The scores of classes, or of words, in what a model returned: what it names ``logits``, if it has two or more.

    None where there are no such scores, and where nothing says that a softmax reads them: a tensor without a name, or
    a model whose config says that it solves another problem.
    """
    x = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        return None
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    classes = x.shape[1 if x.ndim > 3 else -1]
    return x if classes > 1 and problem not in _NO_CLASSES else None


def predicting(model: nn.Module, returned: Any, found: list[Tensor]) -> int | None:
    """Which of the outputs are the `logits` of classes, if any of them is.

    Parameters
    ----------
    model : torch.nn.Module
    returned : object
        What it returned.
    found : list of Tensor
        The `outputs` in that.
    """
    scores = logits(model, returned)
    return next((k for k, x in enumerate(found) if x is scores), None)


def mask_of(batch: Any) -> Tensor | None:
    """Which positions of a batch count: its ``attention_mask`` of samples and tokens; None if it has none."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def rows(x: Tensor, mask: Tensor | None = None, *, of_classes: bool = False) -> Tensor:
    """A tensor as ``float[positions, features]``.

    The features are on the last axis of up to three (samples, tokens, features), and on axis 1 of more (samples,
    channels, height, width). Where the first axes are those of the mask, the unmasked positions are taken, and the
    features are all other axes.

    Parameters
    ----------
    x : Tensor
    mask : Tensor, optional
        ``bool[samples, tokens]``
    of_classes : bool
        Whether the features are classes. The second of two axes has classes then, even if it is as long as the mask.
    """
    if mask is not None and x.shape[: mask.ndim] == mask.shape and not (of_classes and x.ndim == 2):
        chosen = x[mask.to(x.device)]
        return chosen.reshape(len(chosen), chosen[0].numel() if len(chosen) else 1)
    if x.ndim == 1:
        return x[:, None]
    wide = x.movedim(1 if x.ndim > 3 else -1, -1)
    return wide.reshape(-1, wide.shape[-1])


def meaningful(x: Tensor) -> Tensor:
    """Which entries are numbers: neither NaN nor infinite, nor so large that they stand for infinity."""
    return x.abs() < _LARGEST  # a comparison with NaN is false
