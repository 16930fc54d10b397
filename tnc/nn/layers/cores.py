"""The cores of one weight as a torch module, and the weight rebuilt from them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple, NoReturn
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from tnc.contract.padding import crop
from tnc.contract.recipes import rebuild, recipe
from tnc.decomposition import Factorization
from tnc.errors import WeightError
from tnc.nn.layers.folders import refuse_folder
from tnc.nn.layers.guard import Guarded, read_only
from tnc.nn.runtime.autograd import RECORDED, own_precision, tracked, transformed
from tnc.nn.runtime.fingerprint import Fingerprint
from tnc.nn.runtime.formats import CONTIGUOUS, in_format
from tnc.nn.runtime.namespace import paged, recycle

__all__ = ["Cores", "Tensors"]

Tensors = tuple[Tensor, ...]

_COMPUTED = (
    "this weight is computed from the cores of a factorized layer, so that a write to it would be lost: make the layer "
    "dense first, with tnc.nn.uninstall(layer), or write to the cores."
)
_NO_LAYER = (
    "the cores of a factorized weight were run as if they were a layer: a module that owns the weight runs all its "
    "submodules. Make it dense with tnc.nn.uninstall(module) and leave the weight out with tnc.Rule(its name, None)"
)
_FROZEN = "this core belongs to a frozen model, which is never written: call tnc.nn.unfreeze(model) first."


class _ReadOnly(dict[str, Any]):
    """Parameters or buffers of frozen cores. They cannot be replaced, because the kept weight would not change."""

    def __setitem__(self, name: str, value: Any) -> None:
        # torch.export replaces them by tensors without values. That is allowed: its graph holds the kept weight.
        if self.get(name) is not value and not is_fake(value):
            raise WeightError(_FROZEN)

    def __delitem__(self, name: str) -> NoReturn:
        raise WeightError(_FROZEN)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # `Cores.__setstate__` makes them read-only again


class Kept(NamedTuple):
    """A weight that is kept for later calls.

    Attributes
    ----------
    value : Tensor
        The weight.
    content : Fingerprint, optional
        Fingerprint of the cores when the weight was computed; None where they are frozen.
    """

    value: Tensor
    content: Fingerprint | None


class Frozen(NamedTuple):
    """The state of frozen cores.

    Attributes
    ----------
    cores : tuple of Tensor
        Plain copies of the cores, without the guard against writes. No other object shares their memory.
    row : Tensor, optional
        A copy of the pinned row.
    trained : tuple of bool
        For each core, whether it required a gradient before.
    before : tuple of ref
        The parameters before freezing. `Cores.unfreeze` uses them again, so that an optimizer that holds them still
        trains the model.
    """

    cores: Tensors
    row: Tensor | None
    trained: tuple[bool, ...]
    before: tuple[ref[nn.Parameter], ...] = ()


class Cores(nn.Module):
    """The cores of one weight as parameters ``0, 1, ...``. Calling the module returns them.

    Modules with tied weights share one object.

    Parameters
    ----------
    factorization : Factorization
        Its cores become the parameters; a core that is a parameter already is used itself.
    pinned : (int, Tensor), optional
        Number and values of a row that does not come from the cores, such as the padding row of an embedding.
    layout : str
        The memory format of the weight. For the kernel of a convolution it decides how torch computes.
    """

    pinned: Tensor | None

    def __init__(
        self, factorization: Factorization, *, pinned: tuple[int, Tensor] | None = None, layout: str = CONTIGUOUS
    ) -> None:
        super().__init__()
        recycle()
        network, self.roles = factorization.network, factorization.roles
        self.network, self.shape, self.layout = network, tuple(factorization.shape), layout
        self.recipe = recipe(network)
        self.whole = network.shape == self.shape  # no padding is cut off
        columns = network.outer[len(network.axes[0]) :]
        self.column_sizes = tuple(network.sizes[i] for i in columns)
        self.names = tuple(str(k) for k in range(len(factorization.cores)))
        for name, core in zip(self.names, factorization.cores, strict=True):
            self.register_parameter(name, core if isinstance(core, nn.Parameter) else nn.Parameter(core))
        self.row = pinned[0] if pinned else 0
        self.register_buffer("pinned", pinned[1].detach().clone() if pinned else None)
        self.kept: Kept | None = None
        self.frozen: Frozen | None = None

    def forward(self, *inputs: Any) -> Tensors:
        """The cores, read by attribute, so that parametrizations and pruning masks act on them.

        Raises
        ------
        WeightError
            There are inputs: the module was called as if it were a layer.
        """
        if inputs:
            raise WeightError(_NO_LAYER)
        return tuple([getattr(self, name) for name in self.names])

    def held(self) -> Tensors:
        """The current cores. The hooks of the module run, if there are any (pruning, offloading)."""
        if self.frozen is not None:
            return self.frozen.cores
        if self._forward_pre_hooks or self._forward_hooks or "forward" in self.__dict__:
            return self()
        parameters = self._parameters  # ten times as fast as reading attributes
        try:
            return tuple([parameters[name] for name in self.names])
        except KeyError:  # replicas and parametrized cores do not have these parameters
            return self.forward()

    @property
    def row_values(self) -> Tensor | None:
        """The pinned row, if there is one."""
        return self._buffers.get("pinned") if self.frozen is None else self.frozen.row

    @property
    def trains(self) -> bool:
        """Whether a core requires a gradient, or will again after `unfreeze`."""
        return any(self.frozen.trained if self.frozen else (core.requires_grad for core in self.held()))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.held())

    def factorization(self) -> Factorization:
        """The factorization with the current cores, detached."""
        return Factorization(self.network, [core.detach() for core in self.held()], self.shape, self.roles)

    # ------------------------------------------------------------- the weight

    def weight(self, cores: Tensors, keep: bool, lasting: bool | None = None) -> Tensor:
        """The weight of these cores, for reading only.

        Where no gradient is recorded the weight may be kept. It is used again as long as the values of the cores have
        not changed. They are compared in each call, unless they are frozen. The weight is rebuilt where the comparison
        is not possible: a GPU would have to wait for it, or a graph is being recorded.

        Parameters
        ----------
        cores : tuple of Tensor
            The current cores.
        keep : bool
            Whether the weight may be kept for later calls.
        lasting : bool, optional
            What `lasting` says, if the caller knows it.
        """
        kept = self.kept
        if self.frozen is not None and kept is not None:
            return kept.value
        if not keep or not (self.lasting(cores) if lasting is None else lasting):
            return self.rebuilt(*cores)
        watched = self._watched(cores)
        if kept is not None and kept.content is not None and kept.content.holds(watched):
            return kept.value
        content = None if self.frozen is not None else Fingerprint(watched)
        self.kept = Kept(self._stored(cores), content)
        return self.kept.value

    def handed(self, keep: bool) -> Tensor:
        """The weight for a caller outside the layer. A write to it raises an error."""
        weight = self.weight(self.held(), keep)
        return weight if transformed() else Guarded.of(weight, _COMPUTED, self)

    def lasting(self, cores: Tensors) -> bool:
        """Whether values computed from the cores may be kept.

        No gradient and no trace may need them, and a change of the cores must be noticed.
        """
        if self.frozen is not None and self.kept is not None:
            return True
        if transformed() or tracked(*cores):
            return False
        return self.frozen is not None or Fingerprint.possible(cores)

    def _watched(self, cores: Tensors) -> Tensors:
        pinned = self.row_values
        return cores if pinned is None else (*cores, pinned)

    def _stored(self, cores: Tensors) -> Tensor:
        """The weight in new memory that is fast to read many times."""
        with torch.inference_mode(False), torch.no_grad():  # autograd cannot use tensors made in inference mode
            # Allocate the result first, so that freed temporaries do not fragment the heap.
            weight = in_format(paged(self.shape, cores[0]), self.layout)
            return weight.copy_(self.rebuilt(*cores))

    def rebuilt(self, *cores: Tensor) -> Tensor:
        """Contract the cores to the weight, with the pinned row in its place.

        The cores keep their precision under autocast, because a dense weight keeps its own, too. Almost no
        intermediates are kept for the backward pass.
        """
        with own_precision(cores[0]):
            weight = crop(rebuild(self.recipe, cores, RECORDED, prod(self.shape)), self.shape)
        weight = weight if self.layout == CONTIGUOUS else in_format(weight, self.layout)
        pinned = self.row_values
        if pinned is None:
            return weight
        row = torch.arange(len(weight), device=weight.device)[:, None] == self.row
        return torch.where(row, pinned.to(weight.dtype), weight)

    # -------------------------------------------------------------- frozen

    def freeze(self, keep: bool) -> None:
        """Make the cores read-only, in memory that no other object shares. With `keep` the weight is kept, too."""
        if self.frozen is None:
            cores = self.held()
            before = tuple(ref(p) for name in self.names if (p := self._parameters.get(name)) is not None)
            self._make_read_only(cores, tuple(core.requires_grad for core in cores), before)
        if keep and self.kept is None:
            with torch.no_grad():
                self.weight(self.held(), True)

    def _make_read_only(
        self, cores: Tensors, trained: tuple[bool, ...], before: tuple[ref[nn.Parameter], ...] = ()
    ) -> None:
        """Copy the cores and the pinned row, and put guarded tensors in place of the parameters and the buffer."""
        with torch.inference_mode(False), torch.no_grad():
            plain = tuple(core.detach().clone() for core in cores)
            row = None if self._buffers["pinned"] is None else self._buffers["pinned"].detach().clone()
            guarded = {name: read_only(core, _FROZEN) for name, core in zip(self.names, plain, strict=True)}
            guarded_row = None if row is None else Guarded.of(row, _FROZEN)
        buffers = self._buffers | {"pinned": guarded_row}
        self.__dict__.update(_parameters=_ReadOnly(guarded), _buffers=_ReadOnly(buffers))
        self.frozen = Frozen(plain, row, trained, before)

    def unfreeze(self) -> None:
        """Undo `freeze`: the cores become the same parameters again, with the same ``requires_grad``."""
        if (frozen := self.frozen) is None:
            return
        earlier = [reference() for reference in frozen.before] or [None] * len(frozen.cores)
        with torch.no_grad():
            cores = zip(self.names, earlier, frozen.cores, frozen.trained, strict=True)
            parameters = {name: _restored(parameter, core, trained) for name, parameter, core, trained in cores}
        self.__dict__.update(_parameters=parameters, _buffers=self._buffers | {"pinned": frozen.row})
        self.frozen = self.kept = None

    # ------------------------------------------------------- torch's protocol

    def _apply(self, fn: Any, recurse: bool = True) -> Cores:
        """As in torch, but cores have no memory format: torch would give one to each tensor of four or five axes.

        A frozen module that keeps its weight computes it again.
        """
        frozen, keep, self.kept = self.frozen, self.kept is not None, None
        self.unfreeze()
        super()._apply(lambda t: fn(t.flatten()).view(t.shape), recurse)
        if frozen is not None:
            self.freeze(keep)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        refuse_folder()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        """The state without what can be computed again: the kept weight and the plain copies of frozen cores."""
        trained = None if self.frozen is None else self.frozen.trained
        return {**self.__dict__, "kept": None, "frozen": None, "again": (trained, self.kept is not None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        trained, keep = state.pop("again")
        super().__setstate__(state)
        if trained is not None:
            self._make_read_only(self.held(), trained)
            self.freeze(keep)

    def _replicate_for_data_parallel(self) -> nn.Module:
        """As in torch. A replica has its own cores on its own device, and no kept weight."""
        replica: Any = super()._replicate_for_data_parallel()
        replica.frozen = replica.kept = None
        return replica

    def extra_repr(self) -> str:
        """The pattern, the shape and the number of parameters, for ``print``."""
        state = "" if self.frozen is None else ", frozen"
        return f"{self.network.pattern!r}, shape={self.shape}, {self.network.n_params:,} parameters{state}"


def _restored(earlier: nn.Parameter | None, core: Tensor, trained: bool) -> nn.Parameter:
    """The parameter that a frozen core was, with the core's values.

    It is a new parameter where the earlier one is deleted, or has another shape, dtype or device.
    """
    if earlier is None or (earlier.shape, earlier.dtype, earlier.device) != (core.shape, core.dtype, core.device):
        return nn.Parameter(core, trained)
    earlier.data.copy_(core)  # writes to it while the model was frozen do not count
    return earlier.requires_grad_(trained)  # type: ignore[return-value]
