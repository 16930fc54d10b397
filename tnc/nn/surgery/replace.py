"""`compress` factorizes weights of a model by rules. `uninstall` makes them dense again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import nn

from tnc.backends import Backend
from tnc.checkpoint import Checkpoint
from tnc.errors import WeightError
from tnc.nn.calibration.compression import Calibrated, calibrated
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.calibration.versions import Options, Work
from tnc.nn.calibration.weighings import objectives_of
from tnc.nn.data.calls import Calls, Forward
from tnc.nn.layers.base import Factorized
from tnc.nn.layers.cores import Cores
from tnc.nn.runtime.schedule import check
from tnc.nn.surgery.adjust import adjusted
from tnc.nn.surgery.attach import attach, detach, unchanged_on_error
from tnc.nn.surgery.matching import Weights, dense_weights
from tnc.nn.surgery.parameters import factorizations, parameters
from tnc.nn.surgery.refusals import foreign, refuse_hidden, refuse_without_data
from tnc.report import Report
from tnc.roles import AxisRoles
from tnc.rules import Rule, rules_of
from tnc.weights import Progress, compress_weights

__all__ = ["compress", "current", "kept", "replaced", "uninstall"]

Factorize = Callable[[Weights, list[Rule], Mapping[str, AxisRoles]], Checkpoint]
"""Factorizes the weights of a model by rules. The last argument has the roles of the axes of each weight."""


class Settings(TypedDict, total=False):
    """The keyword arguments of `compress` other than ``dry_run``."""

    rank: Any
    backend: str | Backend | None
    execution: str
    seed: int
    progress: Progress | None
    data: Any
    forward: Forward | None
    statistics: Statistics | None
    objective: str


@overload
def compress(
    model: nn.Module, rules: Any, *, dry_run: Literal[False] = False, **settings: Unpack[Settings]
) -> nn.Module: ...


@overload
def compress(model: nn.Module, rules: Any, *, dry_run: Literal[True], **settings: Unpack[Settings]) -> Report: ...


def compress(
    model: nn.Module,
    rules: Any,
    *,
    rank: Any = None,
    backend: str | Backend | None = None,
    execution: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    data: Any = None,
    forward: Forward | None = None,
    statistics: Statistics | None = None,
    objective: str = "auto",
    dry_run: bool = False,
) -> nn.Module | Report:
    """Factorize the matched parameters of a model, in place.

    With calibration inputs, the outputs of the model change least instead of its weights: fits minimize the errors of
    outputs, a `Budget` is shared by predicted errors of the loss, layers make up for the errors of the layers before
    them, and biases and batch normalization correct means. Labels are not needed. Every step is judged by the outputs
    of the whole model on inputs that no fit has seen, and only what brings them nearer to the dense ones is kept.

    All weights are fitted before any is replaced, so that the model is unchanged after an error. Weights that are
    factorized already are left alone, so that several calls with different rules are possible. Make optimizers after
    this call, because they hold the parameters.

    The rule for every weight, ``"*"``, leaves dense what decides or saves nothing: routers, gates of one row, tables of
    positions, small tables, and small parameters that are no linear maps. The report names them. A rule that names such
    a weight factorizes it.

    Parameters
    ----------
    model : torch.nn.Module
    rules : str, Decomposition, Rule or list of Rule
        ``"mpo"`` with ``rank=0.1`` for every weight, or rules on parameter names.
    rank : int, sequence of int, float, str or RankPolicy, optional
        The rank, where `rules` is a decomposition (see `tnc.ranks.short.policy`).
    backend : str, optional
        Where the fits run (``"torch:cuda"``). By default the current backend, or else the device of each weight.
    execution : {"auto", "dense", "factorized"}
        Rebuild the weight, contract inputs with the cores, or do what is cheaper for the batch.
    seed : int
        Seed of all random numbers.
    progress : callable, optional
        Wraps the loop over weights, `rich.progress.track` for instance.
    data : iterable, optional
        Calibration inputs, some hundred: a loader or any iterable of batches. A batch is a tensor, a pair of inputs and
        labels, or a mapping of the model's arguments. No more than 1,024 samples are read.
    forward : callable, optional
        ``forward(model, batch)``, where calling the model takes more than passing the batch.
    statistics : Statistics, optional
        Those of this model and these inputs, if they were gathered before (`tnc.nn.calibration.gather`).
    objective : {"auto", "output", "fisher"}
        What fits and a `Budget` minimize: relative errors of outputs, or the rise of the loss that gradients predict.
        "auto" tries both and keeps the better one.
    dry_run : bool
        Only predict: the ranks are chosen, nothing else is fitted, and the model is left alone. Inputs or statistics
        are used if they are given. "auto" is then "fisher", as there are no outputs to compare.

    Returns
    -------
    torch.nn.Module or Report
        The same object. ``model.tnc_report`` is the `Report`. In a dry run a `Report` whose rows have the predicted
        rises of the loss.

    Raises
    ------
    MatchError, RankError, UnknownNameError, PluginError
        The rules match nothing, or name a rank or a decomposition that does not exist.
    WeightError
        A matched parameter is integer, complex, not finite, on the meta device, or not initialized yet. Or an object
        outside the module's parameters holds it, too, and would still use the dense weight. Or a rule other than
        ``"*"`` matches a parameter that a parametrization computes, or that is sparse, quantized or of 8 bits.
    DataError
        The calibration inputs cannot be used, or the statistics are of another model.
    """
    listing = rules_of(rules, rank)
    options = Options(objectives_of(objective), backend=backend, seed=seed, progress=progress)
    if data is None:
        refuse_without_data(forward, objective, statistics, predicts=dry_run)
    calls = None if data is None else Calls.of(model, data, forward)
    blind = calls is None and statistics is None
    found: list[Calibrated] = []

    def fitted(weights: Weights, rules: list[Rule], roles: Mapping[str, AxisRoles]) -> Checkpoint:
        if blind:
            return compress_weights(
                weights, rules, backend=backend, seed=seed, progress=progress, roles=roles, dry_run=dry_run
            )
        work = Work.of(model, calls, weights, rules, roles, options, statistics)
        if dry_run:
            return _foreseen(work)
        found.append(calibrated(work))
        return found[0].checkpoint

    if dry_run:
        return predicted(model, listing, fitted)
    replaced(model, listing, execution, fitted)
    if found:
        report: Any = model.tnc_report
        model.tnc_report = report.calibrated(found[0].finish(model))
    return model


def _foreseen(work: Work) -> Checkpoint:
    """A checkpoint of dense weights, whose report predicts what the last objective would give."""
    objective, weighings = work.foreseen()
    checkpoint = work.compressed(weighings, dry_run=True)
    samples = work.observed.statistics.samples
    checkpoint.report = checkpoint.report.calibrated({"samples": samples, "objective": objective})
    return checkpoint


def predicted(model: nn.Module, rules: list[Rule], factorize: Factorize) -> Report:
    """The report of a compression that only predicts. The model is left alone.

    Parameters
    ----------
    model : torch.nn.Module
    rules : list of Rule
    factorize : callable
        As for `replaced`; it fits nothing.
    """
    found = dense_weights(model, rules)
    with torch.inference_mode(False), torch.no_grad():
        return found.whole(found.given_to(factorize).report)


def replaced(
    model: nn.Module,
    rules: list[Rule],
    execution: str,
    factorize: Factorize,
) -> nn.Module:
    """Replace weights of a model by factorizations. The model is unchanged after an error.

    Parameters
    ----------
    model : torch.nn.Module
    rules : list of Rule
    execution : {"auto", "dense", "factorized"}
    factorize : callable
        Makes the factorizations from the dense weights, the rules, and the roles of the axes of each weight.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    TncError
        As `compress`.
    """
    check(execution)
    found = dense_weights(model, rules)
    with torch.inference_mode(False), torch.no_grad():
        checkpoint = found.given_to(factorize)
        refuse_hidden(model, checkpoint)
        with unchanged_on_error(model):
            _attach(model, checkpoint, execution)
            adjusted(model)
    model.tnc_report = kept(model, found.whole(checkpoint.report))  # type: ignore[assignment]
    return model


def kept(model: nn.Module, report: Report) -> Report:
    """The report, with the bytes of rebuilt weights that this model may keep in evaluation."""
    kept_bytes: dict[str, int] = {}
    for name, module, _, cores in factorizations(model):
        holder: Any = module
        entries = holder._tnc_keeping if isinstance(module, Factorized) else holder._tnc.keeps * prod(cores.shape)
        kept_bytes[name] = entries * cores.held()[0].element_size()
    return report.keeping(kept_bytes)


def current(model: nn.Module) -> Report | None:
    """The report of the model, without weights that are dense again because one layer was uninstalled by itself."""
    report = getattr(model, "tnc_report", None)
    if not isinstance(report, Report):
        return None
    factorized = {name for name, *_ in factorizations(model)}
    rows = [row for row in report.rows if row.method == "dense" or row.name in factorized]
    return Report(rows, report.total, report.calibration)


def _attach(model: nn.Module, checkpoint: Checkpoint, execution: str) -> None:
    """Put cores in place of every factorized weight. Tied names share their cores."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    dense = parameters(model)
    for name, parameter in dense.items():
        path, _, leaf = name.rpartition(".")
        places.setdefault(id(parameter), []).append((model.get_submodule(path), leaf))
    for home, factorization in checkpoint.factorized.items():
        tied: Cores | None = None
        for module, leaf in places[id(dense[home])]:
            if leaf in module._parameters:  # else it was replaced under another name of the same module
                tied = attach(module, leaf, factorization, execution=execution, tied=tied)


def uninstall(model: nn.Module) -> nn.Module:
    """Make the layers of a model dense again, in place. Every factorized weight becomes a parameter; ties stay.

    Only ties inside `model` stay. A weight outside `model` that is tied to one inside it stays factorized.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    WeightError
        A core is not a plain floating-point tensor: it is a shard, for instance. Nothing is changed then.
    """
    for name, _, _, cores in factorizations(model):
        if (kind := next(filter(None, map(foreign, cores.held())), None)) is not None:
            raise WeightError(f"{name} cannot be made dense here: a core is {kind}. Do it before the model is sharded")
    rebuilt: dict[int, nn.Parameter] = {}
    # A module that is registered under two names is listed twice.
    once = {(id(module), name): (module, name, cores) for _, module, name, cores in factorizations(model)}
    for module, name, cores in once.values():
        rebuilt[id(cores)] = detach(module, name, rebuilt.get(id(cores)))
    adjusted(model)
    model.__dict__.pop("tnc_report", None)
    return model
