"""The scalar whose gradients are gathered: a loss, or a random projection of the outputs."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tnc.errors import DataError
from tnc.nn.data.answers import Answer
from tnc.nn.data.batches import IGNORED
from tnc.nn.data.outputs import outputs

__all__ = ["OBJECTIVES", "Objective", "loss"]

Objective = Literal["auto", "labels", "sampled", "outputs"]
"""The function whose gradients are gathered. ``"labels"``: the cross entropy with the labels of the batches.
``"sampled"``: the cross entropy with labels that are sampled from the model's own predictions. ``"outputs"``: half the
squared distance of outputs, by a random projection. ``"auto"`` takes the labels where they fit. Else it samples where
the model names its outputs logits (see `tnc.nn.data.outputs.logits`), and takes the outputs where it does not."""

OBJECTIVES = ("auto", "labels", "sampled", "outputs")

_ROWS = 256
"""Rows of predictions that labels are drawn for at once: their probabilities are in float64."""


def loss(
    kind: Objective,
    answer: Answer,
    labels: Any,
    generator: torch.Generator,
    *,
    predicts: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """A sum over the samples of a batch, so that the gradient at a sample's outputs is that of its own loss.

    Parameters
    ----------
    kind : {"auto", "labels", "sampled", "outputs"}
    answer : Answer
    labels : object
        Labels of the batch; None if there are none.
    generator : Generator
        For sampled labels and for projections, on the CPU.
    predicts : bool
        Whether the model names its outputs logits.
    mask : Tensor, optional
        ``bool[samples, tokens]``: the tokens for which labels are sampled. By default all.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    DataError
        There are no labels, or no logits, or no outputs with gradients.
    """
    total = None
    if kind in ("auto", "labels"):
        total = _labelled(answer, labels)
        if total is None and kind == "labels":
            raise DataError(
                "objective='labels' needs batches with whole-number labels that fit the model's logits: "
                "give pairs (inputs, labels), or objective='outputs'"
            )
    if total is None:
        is_sampled = kind == "sampled" or (kind == "auto" and predicts)
        total = _sampled(answer, generator, mask) if is_sampled else _projected(answer, generator)
    if not total.requires_grad:
        raise DataError(
            "the model returns no floating-point tensor that depends on its weights by autograd: gradients need one; "
            "pass forward=, which returns what counts"
        )
    return total


def _labelled(answer: Answer, labels: Any) -> Tensor | None:
    """The sum of the losses with these labels; None if they do not fit."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if answer.loss is not None and answer.loss.requires_grad:
        return answer.loss * (labels != IGNORED).sum()  # a mean over labels
    classes = answer.classes
    if classes is None or not classes.is_floating_point() or classes[:, 0].shape != labels.shape:
        return None
    return F.cross_entropy(classes, labels.long(), reduction="sum", ignore_index=IGNORED)


def _sampled(answer: Answer, generator: torch.Generator, mask: Tensor | None) -> Tensor:
    """The sum of the losses with labels that are sampled from the predictions."""
    classes = answer.classes
    if classes is None or not classes.is_floating_point():
        raise DataError("objective='sampled' needs a model that returns logits: take objective='outputs'")
    whole = classes.movedim(1, -1)
    flat = whole.flatten(0, -2)
    drawn = [
        torch.multinomial(part.double().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        for part in flat.detach().split(_ROWS)
    ]
    labels = torch.cat(drawn).to(flat.device)
    if mask is not None and mask.shape == whole.shape[:-1]:
        labels = torch.where(mask.to(flat.device).flatten(), labels, IGNORED)
    return F.cross_entropy(flat, labels, reduction="sum", ignore_index=IGNORED)


def _projected(answer: Answer, generator: torch.Generator) -> Tensor:
    """The outputs times random signs. The second moment of its gradient is the Gauss-Newton matrix, on average."""
    total = torch.zeros(())
    for x in {id(x): x for x in outputs(answer.outputs)}.values():  # some models return a tensor twice
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        total = total.to(x.device) + (x * signs.to(x.device, x.dtype)).sum()
    return total
