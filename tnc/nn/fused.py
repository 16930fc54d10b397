"""torch's fused encoder layer: it reads dense weights only, so it is off where a linear map runs through its cores."""

from __future__ import annotations

from torch import nn

from tnc.nn.factorized import Factorized

__all__ = ["settle"]


def settle(model: nn.Module) -> None:
    """Switch torch's fused evaluation of encoder layers off where it would rebuild weights, and on elsewhere.

    The fused kernel takes ``linear1.weight`` and ``linear2.weight``: a layer that runs through its cores
    would rebuild its weight in every forward instead. An encoder around such a layer makes no nested tensors, which
    the fused kernel alone understands.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _switch(module, "activation_relu_or_gelu", 0, _through_cores(module))
        elif isinstance(module, nn.TransformerEncoder):
            _switch(module, "use_nested_tensor", False, any(map(_through_cores, module.layers)))


def _through_cores(layer: nn.Module) -> bool:
    """Whether a linear map of an encoder layer would not see its weight at some size, in evaluation."""
    maps = [made for name in ("linear1", "linear2") if isinstance(made := getattr(layer, name, None), Factorized)]
    return any(plan for made in maps for _, plan in made.schedule.inference)


def _switch(module: nn.Module, name: str, off: int, wanted: bool) -> None:
    """Set an attribute to `off`, or back to what it was."""
    before = f"_tnc_{name}"
    if wanted and before not in vars(module):
        setattr(module, before, getattr(module, name))
        setattr(module, name, off)
    elif not wanted and before in vars(module):
        setattr(module, name, vars(module).pop(before))
