"""The cores of one weight as a torch module, and the function that rebuilds the weight from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tnc.contract import crop, rebuild, recipe
from tnc.decomposition import Factorization
from tnc.network import Network
from tnc.nn.native import xp
from tnc.nn.recall import Kept, Rows
from tnc.nn.recompute import contracted, own_precision, tracked, transformed
from tnc.nn.scratch import paged
from tnc.typing import Shape

__all__ = ["PLAIN", "Cores", "Rebuild", "arranged", "layout"]

PLAIN = "contiguous_format"

_PLAIN = frozenset((Tensor, nn.Parameter))


class Rebuild(nn.Module):
    """``forward(*cores) -> weight``: the rebuild of one network, planned when it is made.

    Without parameters of its own, so that it also serves as a parametrization of torch.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Shape of the weight.
    keeps : bool
        Whether the weight may be kept between forward passes of a model in evaluation.
    """

    layout = PLAIN
    """The memory format of the weight; that of a convolution's kernel decides how torch computes."""

    def __init__(self, network: Network, shape: Shape, *, keeps: bool = True) -> None:
        super().__init__()
        self.network, self.shape, self.recipe = network, tuple(shape), recipe(network)
        self.keeps = keeps
        self.kept: Kept | None = None

    def forward(self, *cores: Tensor) -> Tensor:
        """The weight. In evaluation and without gradients the last one is kept until a core changes.

        An edit through ``core.data`` escapes torch's version counters: call ``model.eval()`` after it.
        """
        if self.training or not self.keeps or _recorded(cores):
            return self.rebuilt(*cores)
        pinned = self._buffers.get("pinned")
        tensors = cores if pinned is None else (*cores, pinned)
        if (kept := self.kept) and kept.holds(tensors):
            return kept.value
        if not _watchable(cores):
            return self.rebuilt(*cores)
        with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode no gradient may pass
            # Room for it comes before its intermediates: what these leave free is then the heap's end, and no hole.
            room = paged(self.shape, cores[0]).contiguous(memory_format=getattr(torch, self.layout))
            weight = room.copy_(self.rebuilt(*cores))
        self.kept = Kept.of(weight, tensors)
        return weight

    def train(self, mode: bool = True) -> Rebuild:
        """As torch's; the weight kept is forgotten."""
        self.kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Rebuild:
        """As torch's, but for memory formats: torch gives one to all tensors of four axes or five, cores are no maps.

        A core that is cast there and back may lie where it lay before.
        """
        self.kept = None
        return super()._apply(lambda t: fn(t.flatten()).view(t.shape), recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}

    def rebuilt(self, *cores: Tensor) -> Tensor:
        """Contract the cores to the weight, in their own precision even under autocast, as a dense weight has it.

        Next to none of the intermediates is kept for the backward pass.
        """
        with own_precision(cores[0]):
            through = _recompute if torch.is_grad_enabled() else None
            run = partial(contracted, entries=prod(self.shape))
            return crop(rebuild(self.recipe, cores, xp, through, run), self.shape)

    def extra_repr(self) -> str:
        """Pattern and shape, for people."""
        return f"{self.network.pattern!r}, shape={self.shape}, {self.network.n_params:,} parameters"


def _recorded(cores: Sequence[Tensor]) -> bool:
    """Whether what is made of these tensors is differentiated, traced or transformed, and may not outlive the call."""
    return transformed() or tracked(*cores)


def _watchable(cores: Sequence[Tensor]) -> bool:
    """Whether it shows when these change."""
    return _PLAIN.issuperset(map(type, cores)) and not any(map(Tensor.is_inference, cores))


def _recompute(function, *cores: Tensor) -> Tensor:
    return checkpoint(function, *cores, use_reentrant=False)


class Cores(Rebuild):
    """The cores of one weight as parameters ``0, 1, ...``; calling the module rebuilds the weight.

    Parameters
    ----------
    factorization : Factorization
        Its cores become the parameters (as they are when they are parameters already).
    pinned : (int, Tensor), optional
        A row of the weight that is no matter of the cores, such as the padding of an embedding.
    """

    pinned: Tensor | None

    def __init__(self, factorization: Factorization, *, pinned: tuple[int, Tensor] | None = None) -> None:
        super().__init__(factorization.network, factorization.shape)
        for k, core in enumerate(factorization.cores):
            self.register_parameter(str(k), core if isinstance(core, nn.Parameter) else nn.Parameter(core))
        self.row = pinned[0] if pinned else 0
        self.register_buffer("pinned", pinned[1].detach().clone() if pinned else None)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._parameters.values())  # type: ignore[arg-type]

    def factorization(self) -> Factorization:
        """The value these parameters hold now, detached."""
        return Factorization(self.network, [core.detach() for core in self], self.shape)

    def forward(self, *cores: Tensor) -> Tensor:
        """The weight of the parameters held, which a caller who has them at hand may pass."""
        return super().forward(*(cores or self))

    def recalled(self, cores: tuple[Tensor, ...], most: int) -> Rows | None:
        """Rows kept of what these cores make, `most` at most; None where none may be kept, as a weight may not.

        A GPU would have to wait for the answer whether all rows are there.
        """
        if self.training or _recorded(cores):
            return None
        if (kept := self.kept) and kept.holds(cores):
            return kept.value
        if not most or cores[0].device.type != "cpu" or not _watchable(cores):
            return None
        with torch.inference_mode(False):
            rows = Rows(self.shape[0], most)
        self.kept = Kept.of(rows, cores)
        return rows

    def rebuilt(self, *cores: Tensor) -> Tensor:
        """Rebuild the weight, with the pinned row in its place."""
        weight = super().rebuilt(*cores)
        weight = weight if self.layout == PLAIN else arranged(weight, self.layout)
        if self.pinned is None:
            return weight
        row = torch.arange(len(weight), device=weight.device)[:, None] == self.row
        return torch.where(row, self.pinned.to(weight.dtype), weight)


def layout(weight: Tensor) -> str:
    """The memory format of a dense weight, by torch's name for it: formats themselves cannot be pickled."""
    name = {4: "channels_last", 5: "channels_last_3d"}.get(weight.dim(), PLAIN)
    plain = weight.is_contiguous() or not weight.is_contiguous(memory_format=getattr(torch, name))
    return PLAIN if plain else name


def arranged(weight: Tensor, layout: str) -> Tensor:
    """A tensor in a memory format."""
    return weight.contiguous(memory_format=getattr(torch, layout))
