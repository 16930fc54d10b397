"""Gather the statistics of a dense model: run it on some inputs, and look at what its weights see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnc.errors import DataError, listed
from tnc.nn.calibration.loss import OBJECTIVES, Objective, loss
from tnc.nn.calibration.observe import Observer
from tnc.nn.calibration.operations import Use
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.calibration.swap import quiet, recording
from tnc.nn.calibration.tallies import Tally
from tnc.nn.calibration.weights import weights
from tnc.nn.data.answers import answer
from tnc.nn.data.calls import Calls, Forward
from tnc.nn.data.outputs import logits, mask_of
from tnc.weights import Progress

__all__ = ["gather"]


def gather(
    model: nn.Module,
    data: Any,
    *,
    forward: Forward | None = None,
    gradients: bool = False,
    objective: Objective = "auto",
    names: Iterable[str] | None = None,
    missing: Literal["raise", "ignore"] | None = None,
    progress: Progress | None = None,
    samples: int = 1024,
    seed: int = 0,
) -> Statistics:
    """Gather second moments of the inputs of every weight, and on request of the gradients at its outputs.

    The model runs once over the inputs, as in evaluation. Afterwards it is as it was, whatever happens: its modes, its
    gradients, and the random numbers of torch. Weights are found by the operations that use them, so any module will
    do. A weight that a parametrization computes is not seen, and neither is one that is added to something. The sums
    take 8 bytes for each pair of columns of a weight (and of rows with gradients); `names` limits them.

    Parameters
    ----------
    model : torch.nn.Module
    data : Calls, Tensor, or iterable
        A loader, or any iterable of batches: tensors, pairs (inputs, labels), or mappings of named arguments.
    forward : callable, optional
        ``forward(model, batch)``, where calling the model takes more than passing the batch. It returns the outputs.
    gradients : bool
        Whether to gather gradients, too. This takes about three times as long.
    objective : {"auto", "labels", "sampled", "outputs"}
        What gradients are of: the cross entropy with the labels of the batches, or with labels that are sampled from
        the model's predictions, or the squared distance of outputs. "auto" takes the labels where there are any. Else
        it samples where the model names its outputs logits, and takes the outputs where it does not.
    names : iterable of str, optional
        Parameters that are wanted; by default all weights of two axes or more.
    missing : {"raise", "ignore"}, optional
        What to do with weights that no batch reaches. By default those in `names` are an error, others are left out.
    progress : callable, optional
        Wraps the loop over batches, `rich.progress.track` for instance.
    samples : int
        No batch is read after this number of samples.
    seed : int
        For the patches that are taken of large images, and for gradients without labels.

    Returns
    -------
    Statistics

    Raises
    ------
    DataError
        There is no batch, inputs or what a weight sees are not finite, or no batch reaches a wanted weight.
    MatchError
        A name does not exist.
    """
    if objective not in OBJECTIVES:
        raise DataError(f"objective={objective!r} is not known: take one of {listed(OBJECTIVES)}")
    wanted = weights(model, names)
    tallies = {name: Tally(weight) for name, weight in wanted.items()}
    with torch.inference_mode(False):
        calls = Calls.of(model, data, forward, samples)
        _run(model, calls, tallies, objective if gradients else None, progress, seed)
    if missing == "raise" or (missing is None and names is not None):
        _check_reached(tallies)
    moments = {name: tally.moments(calls.samples) for name, tally in tallies.items() if tally.reached}
    shapes = {name: tuple(weight.parameter.shape) for name, weight in wanted.items()}
    return Statistics(moments, calls.samples, shapes)


def _check_reached(tallies: dict[str, Tally]) -> None:
    if unseen := [name for name, tally in tallies.items() if not tally.reached]:
        raise DataError(
            f"no batch of data= reaches {listed(unseen)}: give inputs that use them, leave them out of names=, or "
            "pass missing='ignore'"
        )


def _run(
    model: nn.Module,
    calls: Calls,
    tallies: dict[str, Tally],
    kind: Objective | None,
    progress: Progress | None,
    seed: int,
) -> None:
    """Run the model over all batches, and fill the tallies."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [tally.weight.parameter for tally in tallies.values()]
    batches: Sequence[Any] = calls.batches
    with ExitStack() as stack:
        stack.enter_context(quiet(model))
        stack.enter_context(torch.no_grad() if kind is None else recording(parameters))
        for k, batch in enumerate(batches if progress is None else progress(batches)):

            def see(use: Use, k: int = k) -> None:
                if not tallies[use.weight.name].see(use, len(batches), seed + k):
                    raise DataError(_not_finite(use, k, "input"))

            observer = Observer((tally.weight for tally in tallies.values()), see, gradients=kind is not None)
            with observer:
                returned = calls.returned(model, batch)
            if kind is not None:
                observer.settle()
                total = loss(
                    kind, answer(returned), calls.labels(batch), generator,
                    predicts=logits(model, returned) is not None, mask=mask_of(batch),
                )  # fmt: skip
                _backward(observer, tallies, total, k)


def _backward(observer: Observer, tallies: dict[str, Tally], total: Tensor, k: int) -> None:
    """Compute the gradients at the outputs of all weights, and of nothing else."""
    if not observer.places:
        return
    edges = [edge for _, edge in observer.places]
    found = torch.autograd.grad(total, edges, allow_unused=True)
    for (use, _), gradient in zip(observer.places, found, strict=True):
        if gradient is not None and not tallies[use.weight.name].receive(use, gradient):
            raise DataError(_not_finite(use, k, "gradient at the output"))


def _not_finite(use: Use, k: int, what: str) -> str:
    return (
        f"the {what} of {use.weight.name} is NaN or infinite for batch {k} of data=: "
        "look for the module before it that overflows, or run the model in float32"
    )
