"""Hidden states that a compressed model learns from the dense one: which ones, and how to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tnc.errors import DataError, MatchError, closest, listed
from tnc.nn.data.batches import tensors
from tnc.nn.data.calls import Calls
from tnc.nn.data.outputs import outputs, predicting

__all__ = ["States", "blocks", "checked_targets", "states"]


class States(NamedTuple):
    """What a model returns for a batch, and what it has inside.

    Attributes
    ----------
    outputs : list of Tensor
    hidden : list of Tensor
        The first floating tensor that each target returns.
    predicting : int, optional
        Which of the outputs are logits of classes.
    """

    outputs: list[Tensor]
    hidden: list[Tensor]
    predicting: int | None


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the repeated blocks of a model: transformer layers, residual blocks.

    They are the children of the longest `ModuleList` or `Sequential` whose modules are all of one class and have
    children, and of every other one with blocks of that class.
    """
    series: list[tuple[type, list[str]]] = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        kinds = {type(child) for _, child in children}
        is_series = isinstance(module, nn.ModuleList | nn.Sequential) and len(kinds) == 1
        if is_series and all(any(True for _ in child.children()) for _, child in children):
            names = [f"{path}.{name}" if path else name for name, _ in children]
            series.append((kinds.pop(), names))
    if not series:
        return ()
    kind, longest = max(series, key=lambda each: len(each[1]))
    if len(longest) < 2:
        return ()
    return tuple(name for of, names in series if of is kind for name in names)


def checked_targets(model: nn.Module, teacher: nn.Module, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the modules whose outputs are compared: those given, or the blocks that both models have.

    Parameters
    ----------
    model, teacher : torch.nn.Module
    targets : sequence of str, optional
        Names of modules. By default they are the `blocks` of the teacher, if the model has them, too.

    Raises
    ------
    MatchError
        A name is of no module of the model, or of none of the teacher.
    """
    known = [{name for name, _ in each.named_modules() if name} for each in (model, teacher)]
    if targets is None:
        found = blocks(teacher)
        return found if set(found) <= known[0] else ()
    if isinstance(targets, str):
        targets = [targets]
    for owner, names in zip(("model", "teacher"), known, strict=True):
        if missing := [name for name in targets if name not in names]:
            raise MatchError(
                f"targets= names {listed(missing)}, which the {owner} does not have.{closest(missing[0], names)} "
                "Give names of modules that both have, or () to compare the outputs only"
            )
    return tuple(targets)


def states(model: nn.Module, calls: Calls, batch: Any, targets: tuple[str, ...]) -> States:
    """The outputs of a model for a batch, and the first floating tensor that each target returns.

    Parameters
    ----------
    model : torch.nn.Module
    calls : Calls
    batch : object
        One of the batches of `calls`, or some of its samples.
    targets : tuple of str
        Names of modules.

    Raises
    ------
    DataError
        A target is not called, or returns no floating tensor.
    """
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, returned: Any) -> None:
            found = next((x for x in tensors(returned) if x.is_floating_point() and x.ndim), None)
            if found is not None:
                seen[name] = found

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in targets]
    try:
        returned = calls.returned(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in targets if name not in seen]:
        raise DataError(
            f"targets= names {listed(missing)}, which the model does not call, or which return no floating tensor: "
            "leave them out, or give () to compare the outputs only"
        )
    found = outputs(returned)
    return States(found, [seen[name] for name in targets], predicting(model, returned, found))
