"""The cores of one weight as a torch module, and the pure function that rebuilds the weight from them."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tnc.contract import crop, rebuild, recipe
from tnc.decomposition import Factorization
from tnc.network import Network
from tnc.typing import Shape

__all__ = ["Cores", "Rebuild"]


class Rebuild(nn.Module):
    """``forward(*cores) -> weight``: the rebuild of one network, planned when it is made.

    Without parameters of its own, so that it also serves as a parametrization of torch.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Shape of the weight.
    """

    def __init__(self, network: Network, shape: Shape) -> None:
        super().__init__()
        self.network, self.shape, self.recipe = network, tuple(shape), recipe(network)

    def forward(self, *cores: Tensor) -> Tensor:
        """Contract the cores to the weight, in their own precision even under autocast, as a dense weight has it.

        A feed keeps none of its intermediates for the backward pass.
        """
        device = cores[0].device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return Rebuild.forward(self, *cores)
        through = _recompute if torch.is_grad_enabled() else None
        return crop(rebuild(self.recipe, cores, xp, through), self.shape)

    def extra_repr(self) -> str:
        """Pattern and shape, for people."""
        return f"{self.network.pattern!r}, shape={self.shape}, {self.network.n_params:,} parameters"


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

    def __iter__(self):
        return iter(self._parameters.values())

    def factorization(self) -> Factorization:
        """The value these parameters hold now, detached."""
        return Factorization(self.network, [core.detach() for core in self], self.shape)

    def forward(self, *unused: Tensor) -> Tensor:
        """Rebuild the weight, with the pinned row in its place."""
        weight = super().forward(*self._parameters.values())  # type: ignore[arg-type]
        if self.pinned is None:
            return weight
        row = torch.arange(len(weight), device=weight.device)[:, None] == self.row
        return torch.where(row, self.pinned.to(weight.dtype), weight)
