"""Torch models: factorize, install, save and train them. Torch lives here and in its backend only."""

from __future__ import annotations

from tnc.errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtraError("models need PyTorch: pip install 'tncompress[torch]'") from error

from tnc.nn.calibration.judge import Judge
from tnc.nn.calibration.recalibrate import Recalibration, recalibrate
from tnc.nn.layers.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tnc.nn.layers.embedding import Embedding, EmbeddingBag
from tnc.nn.layers.linear import Linear
from tnc.nn.surgery.freezing import freeze, unfreeze
from tnc.nn.surgery.loading import install
from tnc.nn.surgery.replace import compress, uninstall
from tnc.nn.surgery.saving import load, save
from tnc.nn.surgery.sensitivity import Sensitivity, sensitivity
from tnc.nn.surgery.tensorize import tensorize
from tnc.nn.training.heal import History, heal
from tnc.nn.training.parameter_groups import parameter_groups
from tnc.nn.training.refine import Refinement, refine

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
    "Judge",
    "Linear",
    "Recalibration",
    "Refinement",
    "Sensitivity",
    "compress",
    "freeze",
    "heal",
    "install",
    "load",
    "parameter_groups",
    "recalibrate",
    "refine",
    "save",
    "sensitivity",
    "tensorize",
    "unfreeze",
    "uninstall",
]
