"""Torch models: factorize, install, save and train them. Torch lives here and in its backend only."""

from __future__ import annotations

from tnc.errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtraError("models need PyTorch: pip install 'tncompress[torch]'") from error

from tnc.nn.heal import History, heal
from tnc.nn.install import compress, install, uninstall
from tnc.nn.layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    EmbeddingBag,
    Linear,
)
from tnc.nn.optimizer import parameter_groups
from tnc.nn.saving import load, save
from tnc.nn.tensorize import tensorize

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "History",
    "Linear",
    "compress",
    "heal",
    "install",
    "load",
    "parameter_groups",
    "save",
    "tensorize",
    "uninstall",
]
