"""Update other modules of a model after its weights became factorized or dense."""

from __future__ import annotations

from torch import nn

from tnc.nn.surgery.encoder import switch_fused_encoders
from tnc.nn.surgery.pretrained import exchange_pretrained_classes

__all__ = ["adjusted"]


def adjusted(model: nn.Module) -> None:
    """Update modules that read weights of their children, and models of transformers, which save themselves."""
    switch_fused_encoders(model)
    exchange_pretrained_classes(model)
