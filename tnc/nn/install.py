"""`compress`, `install`, `uninstall`: from a model and rules, or a checkpoint, to factorized weights and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tnc.backends import Backend, get, move
from tnc.checkpoint import Checkpoint
from tnc.decomposition import Factorization
from tnc.errors import CheckpointError, MatchError, WeightError, listed
from tnc.nn.execution import check
from tnc.nn.factorized import Factorized
from tnc.nn.fused import settle
from tnc.nn.sites import (
    attach,
    computed,
    detach,
    factorizations,
    is_pinned,
    parameters,
    unchanged_on_error,
    weights,
)
from tnc.report import Report
from tnc.weights import Progress, Rule, compress_weights, rules_of

__all__ = ["compress", "install", "replaced", "uninstall"]


def compress(
    model: nn.Module,
    rules: Any,
    *,
    rank: Any = None,
    backend: str | Backend | None = None,
    execution: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Factorize the matched parameters of a model, in place.

    Everything is fitted before anything is replaced: after an error the model is as it was. Weights that are
    factorized already stay so: rules can be applied in turns. Make optimizers afterwards: they hold parameters.

    Parameters
    ----------
    model : torch.nn.Module
    rules : str, Decomposition, Rule or list of Rule
        ``"mpo"`` with ``rank=0.1`` for every weight, or rules on parameter names.
    backend : str, optional
        Where the fits run (``"torch:cuda"``); the backend in force, else where each weight is.
    execution : {"auto", "dense", "factorized"}
        Rebuild the weight, contract inputs with the cores, or whichever is cheaper for the batch.
    seed : int
    progress : callable, optional
        Wraps the loop over weights, `rich.progress.track` for instance.

    Returns
    -------
    torch.nn.Module
        The same object; ``model.tnc_report`` is the `Report`.

    Raises
    ------
    MatchError, RankError, UnknownNameError, PluginError
        The rules match nothing or ask for what does not exist.
    WeightError
        A matched parameter is integer, complex, not finite, on the meta device, not initialized yet, computed by
        a parametrization, or also held outside the module's parameters, where a replacement would go unnoticed.
    """

    def fitted(weights: Mapping[str, torch.Tensor], rules: list[Rule]) -> Checkpoint:
        return compress_weights(weights, rules, backend=backend, seed=seed, progress=progress)

    return replaced(model, rules_of(rules, rank), execution, fitted)


def replaced(
    model: nn.Module,
    rules: list[Rule],
    execution: str,
    made: Callable[[Mapping[str, torch.Tensor], list[Rule]], Checkpoint],
) -> nn.Module:
    """Put what `made` makes of a model's weights and the rules in their place; the model is the same after an error."""
    check(execution)
    dense = _initialized(model)
    rules = _refuse_computed(model, rules)
    plain = {id(parameter): parameter.detach() for parameter in dense.values()}  # tied ones are one object still
    weights = {name: plain[id(parameter)] for name, parameter in dense.items()}
    held = [name for name, *_ in factorizations(model)]
    try:
        checkpoint = made(weights, rules)
    except MatchError as error:
        again = f" Factorized already: {listed(held)}; tnc.nn.uninstall(model) makes them dense again." if held else ""
        raise MatchError(f"{error}{again}") from error
    _refuse_hidden(model, checkpoint)
    with unchanged_on_error(model):
        _attach(model, checkpoint, execution)
    earlier = [row for row in getattr(model, "tnc_report", Report([])).rows if row.name in held]
    total = checkpoint.report.total + sum(row.before for row in earlier)
    model.tnc_report = _kept(model, Report([*earlier, *checkpoint.report.rows], total))  # type: ignore[assignment]
    return model


def _kept(model: nn.Module, report: Report) -> Report:
    """The report with the bytes that this model, as it is executed, may keep in evaluation."""
    kept = {}
    for name, module, _, cores, rebuild in factorizations(model):
        entries = module.keeping if isinstance(module, Factorized) else rebuild.keeps * prod(rebuild.shape)
        kept[name] = entries * cores[0].element_size()
    return report.keeping(kept)


def _initialized(model: nn.Module) -> dict[str, nn.Parameter]:
    """The dense parameters; those of lazy modules have no shape before a first forward, scripted ones no class."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise WeightError(f"{path or 'the model'} is compiled by torch.jit: compress what it was made from instead")
    dense = parameters(model)
    for name, parameter in dense.items():
        if isinstance(parameter, UninitializedParameter):
            raise WeightError(f"{name} is not initialized yet: run the model once on an example input")
    return dense


def _refuse_computed(model: nn.Module, rules: list[Rule]) -> list[Rule]:
    """A weight that a parametrization computes is no parameter: say so, unless a rule leaves it out.

    The rules that are about parameters are given back.
    """
    found = computed(model)
    for name, how in found.items():
        rule = next((rule for rule in rules if fnmatchcase(name, rule.match)), None)
        if rule is not None and rule.decomposition is not None:
            raise WeightError(
                f"{name} is computed by the parametrization {how}: make it a parameter with torch.nn.utils."
                f"parametrize.remove_parametrizations, or leave it out with tnc.Rule({name!r}, None)"
            )
    dense = parameters(model)

    def about(names: Iterable[str], rule: Rule) -> bool:
        return any(fnmatchcase(name, rule.match) for name in names)

    return [rule for rule in rules if about(dense, rule) or not about(found, rule)]


def _refuse_hidden(model: nn.Module, checkpoint: Checkpoint) -> None:
    """A tensor in a plain attribute, list or dict of a module would keep the old weight: say so."""
    replaced = {*checkpoint.factorized, *(n for n, home in checkpoint.aliases.items() if home in checkpoint.factorized)}
    names = {id(parameter): name for name, parameter in parameters(model).items() if name in replaced}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            continue  # its list of weights is taken care of
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_modules", "_buffers"):
                continue
            for tensor in _tensors(value):
                if id(tensor) in names:
                    raise WeightError(
                        f"{names[id(tensor)]} is also held by {path or 'the model'}.{attribute}, which would keep the "
                        "dense weight: remove that reference or leave the weight out with a rule"
                    )


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """Tensors in a value and in the containers in it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, depth - 1)


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _attach(model: nn.Module, checkpoint: Checkpoint, execution: str) -> None:
    names: dict[str, list[str]] = {name: [name] for name in checkpoint.factorized}
    for other, home in checkpoint.aliases.items():
        if home in names:
            names[home].append(other)
    dense = parameters(model)
    for home, factorization in checkpoint.factorized.items():
        shared = dense.get(home)  # a checkpoint may tie what this model unties, and the other way round
        group = names[home] + [n for n, p in dense.items() if p is shared and n not in names[home]]
        tied = None
        for name in group:
            module, leaf = _locate(model, name) if name in dense else (model, "")
            if leaf in module._parameters:  # no buffer, and not replaced under another name of the module
                tied = attach(module, leaf, factorization, execution=execution, tied=tied)
    settle(model)


def install(model: nn.Module, checkpoint: Checkpoint, *, execution: str = "auto", strict: bool = True) -> nn.Module:
    """Put the weights of a checkpoint into a model: factorized where they are, dense elsewhere.

    Parameters
    ----------
    model : torch.nn.Module
        Of the architecture the checkpoint was made from; factorized weights it already has are replaced.
    strict : bool
        Whether names that only the model or only the checkpoint has are an error, as in ``load_state_dict``.
        A name missing from the checkpoint is none where the model ties it to one that is there.

    Returns
    -------
    torch.nn.Module
        The same object; ``model.tnc_report`` is the `Report` of the compression.

    Raises
    ------
    CheckpointError
        Names or shapes do not agree; all of them are listed and the model is as it was.
    WeightError
        A parameter is on the meta device, not initialized yet, or also held outside the module's parameters.
    """
    check(execution)
    for name, parameter in _initialized(model).items():
        if parameter.device.type == "meta":
            raise WeightError(f"{name} is on the meta device: call model.to_empty(device='cpu') before installing")
    names = _agreed(model, checkpoint, strict)
    _refuse_hidden(model, checkpoint)
    with unchanged_on_error(model), torch.no_grad():
        uninstall(model)
        state = model.state_dict()
        for name in names:
            entry = checkpoint[name]
            # Of a factorized weight a buffer keeps the values, and an embedding its padding row.
            entry = entry.dense() if isinstance(entry, Factorization) else entry
            state[name].copy_(move(entry, get("torch")))
        _attach(model, checkpoint, execution)
        buffers = dict(model.named_buffers())
        for name in filter(is_pinned, checkpoint):
            if name in buffers:
                buffers[name].copy_(move(checkpoint[name], get("torch")))
        model.tnc_report = _kept(model, checkpoint.report)  # type: ignore[assignment]
    return model


def _agreed(model: nn.Module, checkpoint: Checkpoint, strict: bool) -> list[str]:
    """Names that model and checkpoint share, after the complaint about all others."""
    present = {name: tuple(entry.shape) for name, entry in weights(model).items() if not is_pinned(name)}
    given = {name: tuple(checkpoint[name].shape) for name in checkpoint if not is_pinned(name)}
    shared = [name for name in given if name in present]
    memory = {name: id(parameter) for name, parameter in parameters(model).items()}
    memory |= {name: id(cores[0]) for name, _, _, cores, _ in factorizations(model)}
    there = {memory[name] for name in shared if name in memory}
    problems = {
        "missing from the checkpoint": [n for n in present if n not in given and memory.get(n) not in there],
        "unexpected": [n for n in given if n not in present],
    }
    if not strict and shared:
        problems = {}
    problems["of another shape"] = [f"{n} {given[n]} for {present[n]}" for n in shared if given[n] != present[n]]
    if any(problems.values()):
        said = "; ".join(f"{what}: {listed(names, 20)}" for what, names in problems.items() if names)
        raise CheckpointError(f"the checkpoint is for another architecture: {said}")
    return shared


def uninstall(model: nn.Module) -> nn.Module:
    """Back to dense layers, in place: every factorized weight becomes a parameter again, tied ones stay tied."""
    rebuilt: dict[int, nn.Parameter] = {}
    # A module that is registered twice is found twice.
    found = {(id(module), name): (module, name, cores) for _, module, name, cores, _ in factorizations(model)}
    # One that keeps a row goes first: what is tied to it gets the whole weight.
    for module, name, cores in sorted(found.values(), key=lambda held: getattr(held[0], "kept_row", None) is None):
        rebuilt[id(cores[0])] = detach(module, name, rebuilt.get(id(cores[0])))
    settle(model)
    model.__dict__.pop("tnc_report", None)
    return model
