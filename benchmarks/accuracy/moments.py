"""What enters a weight: rows of inputs by hooks, their second moments, and roots of those.

Written from the formulas, without `tnc`, because the controls are what `tnc` is measured by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.accuracy.subject import Forward, call

__all__ = ["Root", "collected", "groups", "root", "second_moments", "visit"]

CUT = 1e-10
"""Eigenvalues below this part of the largest count as zero."""
See = Callable[[str, Tensor], None]


class _Enough(Exception):
    """Everything that was asked for has been seen; the rest of the network need not run."""


def rows(module: nn.Module, weight: str, x: Tensor, out: Any) -> Tensor:
    """The inputs of a weight as rows, in float64. A convolution has one for every place of its kernel."""
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2).double()
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        patches = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.transpose(1, 2).flatten(0, 1).double()
    if isinstance(module, nn.LSTM) and module.num_layers == 1 and module.batch_first and not module.proj_size:
        return _of_lstm(module.hidden_size, weight, x, out[0]).flatten(0, 1).double()
    raise TypeError(f"the controls know no {module}")


def _of_lstm(hidden: int, weight: str, x: Tensor, out: Tensor) -> Tensor:
    """The sequence itself, or the states before each step of the direction."""
    if weight.startswith("weight_ih"):
        return x
    zero = torch.zeros_like(out[:, :1, :hidden])
    if weight.endswith("reverse"):
        return torch.cat([out[:, 1:, hidden:], zero], 1)
    return torch.cat([zero, out[:, :-1, :hidden]], 1)


def _owners(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module, str]]:
    parts = [(name, *name.rpartition(".")[::2]) for name in names]
    return [(name, model.get_submodule(owner), weight) for name, owner, weight in parts]


@torch.no_grad()
def visit(model: nn.Module, names: Sequence[str], batch: Any, forward: Forward | None, see: See) -> None:
    """Call ``see(name, rows)`` for every weight in the order of the forward pass, which ends after the last one."""
    left = len(names)

    def hook(name: str, weight: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            nonlocal left
            see(name, rows(module, weight, args[0], out))
            left -= 1
            if not left:
                raise _Enough

        return look

    handles = [module.register_forward_hook(hook(name, weight)) for name, module, weight in _owners(model, names)]
    try:
        call(model, batch, forward)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def second_moments(
    model: nn.Module, names: Sequence[str], calibration: list[Any], forward: Forward | None
) -> dict[str, Tensor]:
    """The sum of ``x xᵀ`` over all inputs x of each weight. The last result is kept for another row or share."""
    key = (id(calibration), tuple(names), digest(model))
    if _last and _last[0][0] == key:
        return _last[0][2]
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x

    for batch in calibration:
        visit(model, names, batch, forward, add)
    _last[:] = [(key, calibration, sums)]  # the samples are held, so that no other list gets their id
    return sums


_last: list[tuple[tuple[Any, ...], list[Any], dict[str, Tensor]]] = []


def digest(model: nn.Module) -> bytes:
    """Changes with any weight or buffer of a model."""
    made = hashlib.sha256()
    for name, value in model.state_dict().items():
        made.update(name.encode() + value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.digest()


def collected(model: nn.Module, names: Sequence[str], batch: Any, forward: Forward | None) -> dict[str, Tensor]:
    """The inputs of some weights for one batch."""
    held: dict[str, Tensor] = {}
    visit(model, names, batch, forward, held.__setitem__)
    return held


def groups(model: nn.Module, names: Sequence[str], batch: Any, forward: Forward | None) -> list[list[str]]:
    """The weights in the order of the forward pass; those that take the same inputs together."""
    made: list[list[str]] = []
    last: list[Any] = [None]

    def see(name: str, x: Tensor) -> None:
        if last[0] is not None and last[0].shape == x.shape and torch.equal(last[0], x):
            made[-1].append(name)
        else:
            made.append([name])
        last[0] = x

    visit(model, names, batch, forward, see)
    return made


class Root(NamedTuple):
    """A square root of a second moment, ``half @ half.T``, and its pseudo-inverse."""

    half: Tensor
    inverse: Tensor


def root(moment: Tensor) -> Root:
    """By the eigenvalues; directions that no input has are left out."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > CUT * values[-1].clamp(min=1e-300)
    values, vectors = values[kept].sqrt(), vectors[:, kept]
    return Root(vectors * values, (vectors / values).T)
