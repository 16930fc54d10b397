"""Torch models: factorize, install, save and train them. Torch lives here and in its backend only."""

from __future__ import annotations

from tnc.errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtraError("models need PyTorch: pip install 'tncompress[torch]'") from error

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
from tnc.nn.saving import load, save

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "Linear",
    "compress",
    "install",
    "load",
    "save",
    "uninstall",
]
