"""Torch's fused encoder layer reads dense weights only; it is switched off where a layer contracts with its cores."""

from __future__ import annotations

from torch import nn

from tnc.nn.layers.base import Factorized

__all__ = ["switch_fused_encoders"]


def switch_fused_encoders(model: nn.Module) -> None:
    """Switch torch's fused evaluation of encoder layers off where it would rebuild weights, and on elsewhere.

    The fused kernel reads ``linear1.weight`` and ``linear2.weight``. A layer that contracts its inputs with the cores
    would have to rebuild its weight in every forward. An encoder around such a layer must make no nested tensors,
    because only the fused kernel can read them.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _set_off(module, "activation_relu_or_gelu", 0, _uses_cores(module))
        elif isinstance(module, nn.TransformerEncoder):
            _set_off(module, "use_nested_tensor", False, any(map(_uses_cores, module.layers)))


def _uses_cores(layer: nn.Module) -> bool:
    """Whether a linear map of an encoder layer contracts with its cores in evaluation, at some batch size."""
    for name in ("linear1", "linear2"):
        linear = getattr(layer, name, None)
        if isinstance(linear, Factorized) and any(plan for _, plan in linear._tnc.schedule.inference):
            return True
    return False


def _set_off(module: nn.Module, name: str, off: object, wanted: bool) -> None:
    """If `wanted`, set an attribute to its value `off`; else give it its earlier value back."""
    backup = f"_tnc_{name}"
    has_backup = backup in vars(module)
    if wanted and not has_backup:
        setattr(module, backup, getattr(module, name))
        setattr(module, name, off)
    elif not wanted and has_backup:
        setattr(module, name, vars(module).pop(backup))
