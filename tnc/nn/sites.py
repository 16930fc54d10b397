"""Where a parameter lives, and how a factorization takes its place: one generic function per need.

`attach` puts cores in place of a parameter, `detach` gives the parameter back. Layers we know become the
classes of `tnc.nn.layers`; recurrent layers hand torch's kernels freshly rebuilt weights; every other
module goes through torch's parametrizations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, singledispatch
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnc.decomposition import Factorization
from tnc.nn.cores import Cores, Rebuild, layout
from tnc.nn.layers import Factorized, factorized_class

__all__ = [
    "attach",
    "computed",
    "detach",
    "factorizations",
    "is_pinned",
    "parameters",
    "unchanged_on_error",
    "weights",
]


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every dense parameter by its name, tied ones under all their names; cores are left out."""
    inside = {id(m) for m in model.modules() if isinstance(m, Cores | parametrize.ParametrizationList)}
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in model.named_modules(remove_duplicate=False)
        if id(module) not in inside
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def computed(model: nn.Module) -> dict[str, str]:
    """Weights of two or more axes that someone else's parametrization computes (`weight_norm`), and its name."""
    return {
        f"{path}.{name}" if path else name: type(made[0]).__name__.strip("_")
        for path, module in model.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(module)
        for name, made in module.parametrizations.items()
        if not isinstance(made[0], Rebuild) and any(parameter.ndim > 1 for parameter in made.parameters())
    }


def factorizations(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, list[nn.Parameter], Rebuild]]:
    """Every factorized weight: full name, module, parameter name, cores and rebuild."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, cores, rebuild in _factorized(module):
            yield f"{path}.{name}" if path else name, module, name, cores, rebuild


def _factorized(module: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], Rebuild]]:
    """Factorized weights of this module alone: parameter name, cores and rebuild."""
    if isinstance(made := module._modules.get("cores"), Cores):
        yield "weight", list(made), made
    for name, made in getattr(module, "parametrizations", {}).items():
        if isinstance(made[0], Rebuild):
            yield name, [getattr(made, f"original{k}") for k in range(made.ntensors)], made[0]


def weights(model: nn.Module) -> dict[str, Any]:
    """What `save` writes: every name of the dense model's state dict, factorized or as a tensor."""
    found: dict[str, Any] = {}
    inner: set[str] = set()
    for name, _, leaf, cores, rebuild in factorizations(model):
        found[name] = Factorization(rebuild.network, [core.detach() for core in cores], rebuild.shape)
        prefix = name.removesuffix(leaf)
        inner |= {f"{prefix}cores.", f"{prefix}parametrizations.{leaf}."}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and (
            is_pinned(name) or not any(name.startswith(prefix) for prefix in inner)
        ):
            found[name] = tensor
    return found


def is_pinned(name: str) -> bool:
    """Whether an entry is the padding row of a factorized embedding, which no dense model has."""
    return name.endswith("cores.pinned")


def attach(
    module: nn.Module,
    name: str,
    factorization: Factorization,
    *,
    execution: str = "auto",
    tied: list[nn.Parameter] | None = None,
) -> list[nn.Parameter]:
    """Put cores in place of the parameter `name` of `module`, keeping its device, dtype and ``requires_grad``.

    Parameters
    ----------
    tied : list of Parameter, optional
        Cores of a tied weight that is attached already; they are shared.

    Returns
    -------
    list of Parameter
        The cores now in place.

    """
    dense = module._parameters[name]
    assert dense is not None
    if tied is None:
        with torch.no_grad():
            tied = [nn.Parameter(_tensor(core, dense), dense.requires_grad) for core in factorization.cores]
    placed = Factorization(factorization.network, tied, factorization.shape)
    module.__dict__.setdefault("_dense_form", (type(module), tuple(module._parameters)))
    made = factorized_class(module) if name == "weight" else None
    if made is None:
        _parametrize(module, name, placed, execution)
    else:
        module.__class__ = _merged(made, type(module))  # type: ignore[arg-type]
        del module._parameters[name]
        assert isinstance(module, Factorized)
        pinned = None if module.kept_row is None else (module.kept_row, _row(dense, module.kept_row, tied[0]))
        cores = Cores(placed, pinned=pinned)
        cores.layout = layout(dense)
        module.adopt(cores, execution)
    return tied


@cache
def _merged(made: Any, kind: Any) -> Any:
    """`made` itself in place of torch's layer; of someone's subclass, one that keeps their attributes and methods."""
    here = {"__reduce_ex__": _reduced}
    return made if kind is getattr(made, "base", None) else type(kind.__name__, (made, kind), here)


def _reduced(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickled and copied by the two classes it is merged of: its own is nowhere to be found."""
    return _empty, type(module).__bases__, object.__reduce_ex__(module, 2)[2]


def _empty(made: Any, kind: Any) -> Any:
    return nn.Module.__new__(_merged(made, kind))


def _tensor(core: Any, like: Tensor) -> Tensor:
    from tnc.backends import get, move

    place = core.device if like.is_meta else like.device  # a weight that does not exist has no place to move to
    # In row-major order, as it comes back from a file: the same order of sums, the same outputs to the last bit.
    there = move(core, get(f"torch:{place}")).detach()
    return there.to(like.dtype, copy=True, memory_format=torch.contiguous_format)


def _row(dense: Tensor, k: int, core: Tensor) -> Tensor:
    """Row `k` of a weight; of one that does not exist, zeros, as torch pads."""
    row = dense.detach()[k]
    return torch.zeros_like(row, device=core.device) if row.is_meta else row


def _parametrize(module: nn.Module, name: str, factorization: Factorization, execution: str) -> None:
    prepare(module)
    cores = list(factorization.cores)

    class Adopt(Rebuild):
        """Hands torch the cores once, when the parametrization is registered."""

        def right_inverse(self, value: Tensor) -> list[Tensor]:
            return [core.detach() for core in cores]

    made = Adopt(factorization.network, factorization.shape, keeps=execution != "factorized")
    made.train(module.training)
    _own_class(module)
    parametrize.register_parametrization(module, name, made, unsafe=True)
    made.__class__ = Rebuild  # type: ignore[assignment]
    for k, core in enumerate(cores):
        setattr(module.parametrizations[name], f"original{k}", core)


def detach(module: nn.Module, name: str, dense: nn.Parameter | None) -> nn.Parameter:
    """Give the parameter `name` back in place of its cores: `dense`, or the rebuilt weight.

    The class of the module becomes what it was.
    """
    if dense is None:
        with torch.no_grad():
            trains = any(core.requires_grad for leaf, cores, _ in _factorized(module) for core in cores if leaf == name)
            dense = nn.Parameter(getattr(module, name).detach().clone(), trains)
    if isinstance(module, Factorized):
        module.release()
    else:
        _own_class(module)
        delattr(type(module), name)
        del module.parametrizations[name]
        if not module.parametrizations:
            del module.parametrizations
    # Back to its place: optimizers and kernels know parameters by their order.
    kind, names = module.__dict__["_dense_form"]
    held = module._parameters | {name: dense}
    module._parameters.clear()
    module._parameters.update({n: held.pop(n) for n in names if n in held} | held)
    if not any(_factorized(module)):
        module.__class__ = kind
        del module._dense_form
        restored(module)
    return dense


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: torch keeps properties there, and deep copies share it."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """After an error every module is as it was: class, parameters, submodules, attributes, hooks."""
    before = [
        (module, type(module), {k: copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, attributes in before:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
        raise


@singledispatch
def prepare(module: nn.Module) -> None:
    """Make a module ready for parametrized weights; nothing to do for most."""


@prepare.register
def _(module: nn.RNNBase) -> None:
    """Recurrent layers keep a list of their weights: make that list read the rebuilt ones."""
    if not isinstance(module, Recurrent):
        module.__class__ = _merged(Recurrent, type(module))  # type: ignore[arg-type]
        del module.__dict__["_flat_weights"]  # or the dense weights would stay in memory


@singledispatch
def restored(module: nn.Module) -> None:
    """What a module needs when all its weights are parameters again; nothing for most."""


@restored.register
def _(module: nn.RNNBase) -> None:
    module._init_flat_weights()


class Recurrent(nn.RNNBase):
    """A recurrent layer whose kernels read the weights as they are now, rebuilt once a forward."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return _within.weights.get(id(self)) or [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor]) -> None:
        """Torch's own list would go stale."""

    def _weights_have_changed(self) -> bool:
        """Not behind torch's back, which would contract each to see."""
        return False

    def flatten_parameters(self) -> None:
        """Rebuilt weights are no one chunk of memory; cuDNN copies them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, every weight contracted once."""
        _within.weights[id(self)] = self._flat_weights
        try:
            return super().forward(*args, **kwargs)
        finally:
            _within.weights.pop(id(self), None)


class _Within(local):
    """The weights of the recurrent layers a thread is in: `parametrize.cached` would be one for all threads."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Tensor]] = {}


_within = _Within()
