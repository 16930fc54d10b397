"""The base of all modules that compute some of their parameters from cores.

Such a module has two kinds of names from this library: the attribute ``_tnc``, and a submodule ``tnc_<parameter>`` for
each computed parameter. All other names belong to the user, and none of them is hidden or overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnc.errors import WeightError
from tnc.nn.layers.cores import Cores
from tnc.nn.layers.guard import Guarded
from tnc.nn.runtime.cache import Rows
from tnc.nn.runtime.schedule import Schedule

__all__ = ["PREFIX", "Holder", "State", "beneath", "composed", "cores_of", "detach", "factorized", "obstacle", "place"]

PREFIX = "tnc_"
"""The prefix of the name of a submodule that holds cores; the parameter's name follows."""


@dataclass
class State:
    """What a module keeps in addition to its cores.

    Attributes
    ----------
    kind : type
        The class it had as a dense module.
    order : tuple of str
        The order of its parameters as a dense module: optimizers and kernels rely on it.
    execution : str
        How its weights are used: ``auto``, ``dense`` or ``factorized``.
    schedule : Schedule
        The plan for each size of the input.
    rows : Rows, optional
        Cached rows of a table, from earlier lookups.
    check : float
        Seconds that it takes to check whether the cores have changed.
    runs : dict of str to type
        For each computed parameter, the class whose methods run the module.
    """

    kind: type[nn.Module]
    order: tuple[str, ...]
    execution: str = "auto"
    schedule: Schedule = field(default_factory=Schedule)
    rows: Rows | None = None
    check: float = 0.0
    runs: dict[str, type[Holder]] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        """Whether a rebuilt weight may be kept."""
        return self.execution != "factorized"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}


class Holder(nn.Module):
    """A module with parameters that are computed from cores. They can be read like parameters, but not written."""

    _tnc: State

    def __setattr__(self, name: str, value: Any) -> None:
        if cores_of(self, name) is None:
            super().__setattr__(name, value)
        else:
            _assign(self, name, value)

    def __delattr__(self, name: str) -> None:
        if cores_of(self, name) is not None:
            raise WeightError(_refusal(type(self).__name__, name, "be deleted"))
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; under the name of a computed parameter it replaces the cores.

        Raises
        ------
        WeightError
            `param` is a computed weight, which pruning or the older weight norm would store under another name.
        """
        if isinstance(param, Guarded) and param.source is not None:
            leaf = name.rpartition("_")[0] or name  # weight_orig and weight_g belong to weight
            raise WeightError(_refusal(type(self).__name__, leaf, "be parametrized"))
        if cores_of(self, name) is None:
            super().register_parameter(name, param)
        else:
            _assign(self, name, param)

    @staticmethod
    def _tnc_kept_row(module: Any) -> int | None:
        """The number of the row of the weight that stays as it is and gets no gradient, if there is one."""
        return None

    @staticmethod
    def _tnc_entered(module: Any) -> None:
        """Called after cores took the place of a parameter; most modules need nothing."""

    @staticmethod
    def _tnc_left(module: Any) -> None:
        """Called after the last cores were replaced by a parameter; most modules need nothing."""

    def __prepare_scriptable__(self) -> nn.Module:
        raise WeightError(
            f"{type(self).__name__} with factorized weights cannot be compiled by torch.jit.script: use torch.compile "
            "or torch.export, or make it dense first with tnc.nn.uninstall(model)"
        )


class _Parameters(dict[str, Any]):
    """The parameters of a module. Looking up a computed one raises an error that says that it is no parameter."""

    def __init__(self, held: dict[str, Any], kind: str, computed: Iterable[str]) -> None:
        super().__init__(held)
        self.kind, self.computed = kind, tuple(computed)

    def __missing__(self, name: str) -> Any:
        if name in self.computed:
            raise WeightError(_refusal(self.kind, name, "be taken for a parameter"))
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            self[name]  # raises and says why
        super().__delitem__(name)

    def __reduce__(self) -> Any:
        return _Parameters, (dict(self), self.kind, self.computed)


def cores_of(module: nn.Module, name: str) -> Cores | None:
    """The cores that the parameter `name` is computed from; None if it is not computed."""
    child = module.__dict__.get("_modules", {}).get(PREFIX + name)
    return child if isinstance(child, Cores) else None


def factorized(module: nn.Module) -> Iterator[tuple[str, Cores]]:
    """The names of the computed parameters of this module alone, and their cores."""
    if "_tnc" in module.__dict__:
        for name, child in list(module._modules.items()):
            if name.startswith(PREFIX) and isinstance(child, Cores):
                yield name.removeprefix(PREFIX), child


def place(module: nn.Module, name: str, cores: Cores, runs: type[Holder], execution: str) -> None:
    """Put cores in place of a parameter.

    Parameters
    ----------
    module : torch.nn.Module
    name : str
        The name of the parameter in the module.
    cores : Cores
    runs : type of Holder
        The class whose methods run the module with these cores.
    execution : {"auto", "dense", "factorized"}

    Raises
    ------
    WeightError
        The module has no place for cores; see `obstacle`.
    """
    if what := obstacle(module, name):
        raise WeightError(f"{name} of this {type(module).__name__} cannot be factorized: {what}")
    state = module.__dict__.get("_tnc") or State(beneath(module), tuple(module._parameters))
    before = _class_of(state) if state.runs else beneath(module)
    state = replace(state, execution=execution, runs=state.runs | {name: runs}, rows=None)
    others = {leaf: parameter for leaf, parameter in module._parameters.items() if leaf != name}
    # New objects, not the old ones changed: a shallow copy of the module keeps its own, and after an error the old ones
    # can be put back.
    module.__dict__.update(
        _tnc=state,
        _parameters=_Parameters(others, type(module).__name__, state.runs),
        _modules={**module._modules, PREFIX + name: cores},
    )
    module.__class__ = _exchanged(type(module), before, _class_of(state))
    runs._tnc_entered(module)


def detach(module: nn.Module, name: str, dense: nn.Parameter | None) -> None:
    """Put a parameter in place of cores. If there are no other cores, the module gets its own class back.

    Parameters
    ----------
    module : torch.nn.Module
    name : str
        The name of the computed parameter in the module.
    dense : Parameter or None
        None is kept under the name, as torch does for a bias that a layer does not have.
    """
    state: State = module._tnc  # type: ignore[assignment]
    before = _class_of(state)
    module.__dict__["_modules"] = {key: child for key, child in module._modules.items() if key != PREFIX + name}
    parameters = _in_order(dict(module._parameters) | {name: dense}, state.order)
    runs = {leaf: runner for leaf, runner in state.runs.items() if leaf != name}
    if runs:
        state = replace(state, runs=runs)
        module.__dict__.update(_tnc=state, _parameters=_Parameters(parameters, type(module).__name__, runs))
        module.__class__ = _exchanged(type(module), before, _class_of(state))
    else:
        holder: Any = type(module)
        module.__dict__["_parameters"] = parameters
        del module.__dict__["_tnc"]
        module.__class__ = _exchanged(holder, before, state.kind)
        holder._tnc_left(module)


def _in_order(parameters: dict[str, Any], order: Iterable[str]) -> dict[str, Any]:
    """The parameters, those named in `order` first."""
    first = {name: parameters[name] for name in order if name in parameters}
    return first | {name: parameter for name, parameter in parameters.items() if name not in first}


def obstacle(module: nn.Module, name: str) -> str | None:
    """Why cores cannot take the place of this parameter, as text; None if they can.

    Names that the module uses itself are never covered.
    """
    submodule = PREFIX + name
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        kind = type(module).__name__
        return f"it belongs to a {kind} itself, which would take the submodule with the cores for one of its parts"
    if cores_of(module, name) is None and hasattr(module, submodule):
        return f"the module has something called {submodule}, the name of the submodule with the cores"
    if not isinstance(module.__dict__.get("_tnc"), State | None):
        return "the module has an attribute called _tnc, where its state would be kept"
    return None


# --------------------------------------------------------------- classes of modules


def _exchanged(kind: Any, old: Any, new: Any) -> Any:
    """A class like `kind` with the base `new` in place of `old`.

    Torch derives classes from those of modules, for instance for a parametrized bias or a shard. Such a class is kept
    and gets the new base.
    """
    if kind is old or old not in kind.__mro__:
        return new
    if parts := kind.__dict__.get("_tnc_parts"):
        runner, base, properties = parts
        return composed(runner, _exchanged(base, old, new), properties)
    bases = tuple(_exchanged(base, old, new) if issubclass(base, old) else base for base in kind.__bases__)
    members = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, members)


def beneath(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without the class that torch derives from it for parametrizations."""
    kind = type(module)
    if parametrize.is_parametrized(module) and kind.__name__ == f"Parametrized{kind.__bases__[0].__name__}":
        return kind.__bases__[0]
    return kind


def _class_of(state: State) -> Any:
    """The class of a module with this state.

    Each computed parameter asks for a class that runs the module. The most derived of these is used.
    """
    runner: Any = max(state.runs.values(), key=lambda candidate: len(candidate.__mro__))
    kind: Any = state.kind
    return composed(runner, kind, tuple(name for name in state.runs if not hasattr(runner, name)))


@cache
def composed(runner: Any, kind: Any, properties: tuple[str, ...]) -> Any:
    """The class of a module that was of class `kind` and runs by the methods of `runner`.

    If `runner` is our version of exactly `kind` and needs no properties, it is returned. Else a class is derived from
    both, so that a subclass by the user keeps its attributes and methods.

    Parameters
    ----------
    runner : type
        The class whose methods run the module.
    kind : type
        The class of the dense module.
    properties : tuple of str
        The parameters that need a property which returns the rebuilt weight.
    """
    if kind is runner.__dict__.get("_tnc_base") and not properties:
        return runner
    readers = {name: property(_reader(name)) for name in properties}
    description = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    parts = {"__reduce_ex__": _reduce, "_tnc_parts": (runner, kind, properties)}
    return type(kind.__name__, (runner, kind), {**readers, **description, **parts})


def _reader(name: str) -> Callable[[Any], Tensor]:
    def read(self: Any) -> Tensor:
        weight: Tensor = self._modules[PREFIX + name].handed(self._tnc.keeps)
        return weight

    return read


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle and copy a module by the parts of its class, because no module of Python has that class."""
    if "_tnc_parts" not in vars(type(module)):  # the user has derived a class from it
        return object.__reduce_ex__(module, protocol)  # type: ignore[return-value]
    return _empty, type(module)._tnc_parts, object.__reduce_ex__(module, 2)[2]  # type: ignore[attr-defined]


def _empty(runner: Any, kind: Any, properties: tuple[str, ...]) -> Any:
    """A module of a composed class without attributes, which unpickling fills."""
    return nn.Module.__new__(composed(runner, kind, properties))


# ---------------------------------------------------------------------- assignments


def _assign(module: Any, name: str, value: Any) -> None:
    """Assign to a computed parameter.

    A parameter (or None) replaces the cores. The computed weight of another module ties both weights: they share the
    cores from then on.

    Raises
    ------
    WeightError
        Any other value, or a computed weight of another shape.
    """
    cores = cores_of(module, name)
    assert cores is not None
    if isinstance(value, Guarded) and isinstance(value.source, Cores):
        if value.source.shape != cores.shape:
            raise WeightError(f"{name}: a weight of shape {value.source.shape} cannot stand for one of {cores.shape}")
        module._modules[PREFIX + name] = value.source
    elif value is None or (isinstance(value, nn.Parameter) and not isinstance(value, Guarded)):
        detach(module, name, value)
    else:
        raise WeightError(_refusal(type(module).__name__, name, f"be set to a {type(value).__name__}"))


def _refusal(kind: str, name: str, action: str) -> str:
    """The message that a computed parameter cannot be used like this, and what to do instead."""
    return (
        f"{name} of this {kind} is computed from the cores of a factorized weight and cannot {action}: make the module "
        f"dense first with tnc.nn.uninstall(module), or work on the cores, which are the parameters of "
        f"module.{PREFIX}{name}"
    )
